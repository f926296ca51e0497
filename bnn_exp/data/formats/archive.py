"""Reads a dataset in a zip or tar archive: unpacks the archive into a temporary folder."""

import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from bnn_exp.data.messages import WHOLE, short_reason, shown
from bnn_exp.data.undecoded import Rows, Source
from bnn_exp.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


UNPACKING = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError, OSError,
)  # fmt: skip


def is_archive(file: Path) -> bool:
    """Returns True if the file has the suffix of a zip or tar archive."""
    return file.name.lower().endswith(SUFFIXES)


def source(file: Path, where: str, find: Callable[[Path], Source]) -> Source:
    """Returns the dataset in the archive `file`. The archive is unpacked only when `load` of the dataset reads the rows.

    Args:
        where: the name of the dataset in error messages.
        find: a function that returns the dataset in a folder.
    """

    def load(outer: Source) -> dict[str, Rows]:
        folder = tempfile.TemporaryDirectory(prefix="bnn_exp-")
        _unpack(file, Path(folder.name), where)
        try:
            inner = find(Path(folder.name))
            inner.where = where
            splits = inner.load(inner)
        except UserError as error:
            raise UserError(
                str(error).replace(f"dataset.path={folder.name}", where).replace(folder.name, shown(file))
            ) from error
        for rows in splits.values():
            rows.name = _elsewhere(rows.name, folder.name, shown(file))
        outer.notes += inner.notes
        outer.warnings += inner.warnings
        outer.kept = folder, inner.kept  # keeps the temporary folder until the images are decoded
        return splits

    return Source(where, file.parent, [file], load)


def _elsewhere(name: Callable[[int], str], folder: str, file: str) -> Callable[[int], str]:
    return lambda i: name(i).replace(folder, file)


def _unpack(file: Path, into: Path, where: str) -> None:
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                archive.extractall(into)
        else:
            with tarfile.open(file) as archive:
                archive.extractall(into, filter="data")
    except UNPACKING as error:
        raise UserError(f"{where}: {shown(file.name)} can't be unpacked ({short_reason(error)})\n{WHOLE}") from error
