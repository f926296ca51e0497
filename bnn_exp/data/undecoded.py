"""Describes a dataset before decoding: the rows of each split as they lie in files, and the files that decide them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnn_exp.data.messages import WHOLE, shown
from bnn_exp.errors import UserError
from bnn_exp.records.files import file_sha256


@dataclass
class Rows:
    """One split before decoding.

    Args:
        pictures: encoded pictures, which are read as they are iterated; or values, of any type of numbers,
            [rows, height, width] or [rows, height, width, channels].
        labels: one a row: a class's name, a number, a bool, an index into `classes`; None where there is none.
        classes: the names that the labels are indices of; None where the labels are the classes themselves.
        name: gives an error's words for a row's number, without the split.
        files: of each row the file that it was, relative to the dataset's folder; empty where rows are no files.
    """

    pictures: Any
    labels: Sequence[Any]
    classes: tuple[str, ...] | None = None
    name: Callable[[int], str] = "image {}".format
    files: tuple[str, ...] = ()


@dataclass
class Source:
    """A dataset that was found.

    Args:
        where: the key and value of the configuration that name it, for errors.
        root: the folder that its files are in.
        files: every file whose name or bytes decide a row.
        plan: tells datasets apart whose files are read in different ways.
        load: reads the rows of each split.
        notes: sentences about how it is read, which the user should know.
        warnings: sentences about what is odd, but usable.
        kept: lives as long as the source, since its rows lie in it.
    """

    where: str
    root: Path
    files: list[Path]
    load: Callable[["Source"], dict[str, Rows]]
    plan: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kept: Any = None

    def digest(self) -> str:
        """Returns the SHA-256 of the names and the bytes of its files, and of the plan by which they are read.

        Raises:
            UserError: a file can't be read.
        """
        digest = hashlib.sha256(self.plan.encode())
        for file in self.files:
            try:
                content = file_sha256(file)
            except OSError as error:
                raise UserError(f"{self.where}: {shown(file)} can't be read ({error.strerror})\n{WHOLE}") from error
            digest.update(f"{shown(file.relative_to(self.root))} {content}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Found:
    """The rows that one form of a dataset finds in a folder.

    Args:
        kind: the form, in an error's words.
        files: those that decide the rows.
        load: reads the rows of each split.
        plan: which file is what.
        columns: dataset.label may choose among columns.
    """

    kind: str
    files: list[Path]
    load: Callable[[Source], dict[str, Rows]]
    plan: str = ""
    columns: bool = True
