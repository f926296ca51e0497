"""Reads datasets of values: IDX files, as MNIST is published, NumPy's .npz and .npy, and CSV files of pixels."""

import gzip
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt, prod
from pathlib import Path
from typing import Any

import numpy as np

from bnn_exp.data.columns import LABELS
from bnn_exp.data.images import NotEightBits, scaled
from bnn_exp.data.rows import WHOLE, Found, Rows, Source, shown, some, split_in, split_of
from bnn_exp.errors import UserError

IDX = re.compile(
    r"(?P<prefix>.*?)(?P<split>train|t10k|test|val|validation)[-_.](?P<kind>images|labels)[-_.]idx[13][-_.]ubyte(\.gz)?", re.I
)
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IMAGES = {"x", "images", "image", "imgs", "img", "data", "pixels"}
TARGETS = {"y", "labels", "label", "targets", "target", "classes"}
AFFIX = re.compile(r"^(train|test|valid|val)(?=.)|(?<=.)(train|test|valid|val)$")  # of a split, as in xtrain
LEAST_PIXELS = 16  # columns of numbers that make a table one of pixels
LONGEST_LINE = 4_000_000  # characters of a CSV file's line that are looked at


UNREADABLE = (
    ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile, MemoryError, OverflowError, LookupError, NotImplementedError,
)  # fmt: skip


class Damaged(ValueError):
    """A file is not what its name says."""


def find(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Finds IDX files, else NumPy's, else CSV files of pixels."""
    return _idx(root, files, where) or _numpy(root, files, where) or _csv(root, files, label, where)


def _idx(root: Path, files: list[Path], where: str) -> Found | None:
    found: dict[tuple[str, str, str], Path] = {}
    for file in sorted(files, key=str, reverse=True):  # a file that is there gzipped too counts as it is
        if match := IDX.fullmatch(file.name):
            found[match["prefix"], split_of(match["split"]), match["kind"].lower()] = file
    pairs = {
        (prefix, split): (file, found[prefix, split, "labels"])
        for (prefix, split, kind), file in found.items()
        if kind == "images" and (prefix, split, "labels") in found
    }
    _no_labels_alone({f"{s} labels of IDX files" for p, s, kind in found if kind == "labels" and (p, s) not in pairs}, where)
    if len({prefix for prefix, _ in pairs}) > 1:
        prefixes = some(sorted({prefix.rstrip("-_.") or "(none)" for prefix, _ in pairs}))
        raise UserError(f"{where}: IDX files of several datasets: {prefixes}\nallowed: one of them")
    if not pairs:
        return None

    def load(source: Source) -> dict[str, Rows]:
        return {split: _rows(source, *(_read(source, file, None, idx) for file in pair)) for (_, split), pair in pairs.items()}

    return Found("IDX files", [file for pair in pairs.values() for file in pair], load)


def idx(file: Path, _: None = None) -> np.ndarray:
    """Returns the array of an IDX file, gzipped or not, in the machine's byte order.

    Raises:
        Damaged: it is none, or its size is not what it says.
    """
    with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb") as stream:
        head = stream.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 4:
            raise Damaged("no IDX file: it begins with other bytes")
        sizes = stream.read(4 * head[3])
        if len(sizes) < 4 * head[3]:
            raise Damaged("it ends in its header")
        shape, kind = struct.unpack(f">{head[3]}I", sizes), np.dtype(IDX_TYPES[head[2]])
        length = prod(shape) * kind.itemsize
        content = stream.read(length + 1) if length < 2**40 else b""
    if len(content) != length:
        more = "more" if len(content) > length else "less"
        raise Damaged(f"it should hold {'×'.join(map(str, shape))} values, and holds {more}")
    return np.frombuffer(content, kind).reshape(shape).astype(kind.newbyteorder("="))


def _numpy(root: Path, files: list[Path], where: str) -> Found | None:
    arrays: dict[str, dict[str, tuple[Path, str | None]]] = {}
    for file in files:
        if file.suffix.lower() == ".npy":
            members = [(file.stem, None)]
        elif file.suffix.lower() == ".npz":
            members = [(name, name) for name in _members(file)]
        else:
            continue
        for name, member in members:
            kind = _kind(name)
            split = split_in(Path(name)) or _prefix_split(name) or split_in(file.relative_to(root))
            if kind:
                arrays.setdefault(split or "train", {}).setdefault(kind, (file, member))
    splits = {split: own for split, own in arrays.items() if len(own) == 2}
    _no_labels_alone({own["labels"][1] or own["labels"][0].name for own in arrays.values() if "images" not in own}, where)
    if not splits:
        return None

    def load(source: Source) -> dict[str, Rows]:
        loaded = {}
        for split, own in splits.items():
            pictures, labels = (_read(source, *own[kind], npy) for kind in ("images", "labels"))
            loaded[split] = _rows(source, pictures, labels)
        return loaded

    return Found("NumPy arrays", list({file: None for own in splits.values() for file, _ in own.values()}), load)


def _no_labels_alone(names: set[str], where: str) -> None:
    """Refuses labels without pictures. (Pictures without labels are common: they are test rows of a competition.)"""
    if names:
        raise UserError(f"{where}: no pictures belong to {some(sorted(names))}\nallowed: pictures and labels of each split")


def _kind(name: str) -> str | None:
    """Returns images or labels, whichever an array's name says: x_train, train_images, Xtest, y."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    rest = [AFFIX.sub("", word) for word in words if not split_of(word)]
    for kind, known in (("images", IMAGES), ("labels", TARGETS)):
        if any(word in known for word in rest):
            return kind
    return None


def _prefix_split(name: str) -> str | None:
    match = re.search(r"(train|test|valid|val)", name.lower())
    return match and split_of(match[1])


def _members(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def npy(file: Path, member: str | None = None) -> np.ndarray:
    """Returns the array of an .npy file, or that of a member of an .npz file.

    Raises:
        Damaged: it is none, or its size is not what it says.
    """
    if member is None:
        with file.open("rb") as stream:
            return _npy(stream, file.stat().st_size)
    with zipfile.ZipFile(file) as archive, archive.open(f"{member}.npy") as stream:
        if damaged := archive.testzip():  # of the other members too: a damaged name hides an array
            raise Damaged(f"its part {damaged} is damaged")
        return _npy(stream, archive.getinfo(f"{member}.npy").file_size)


def _npy(stream, size: int) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
    shape, fortran, kind = header(stream)
    if kind.hasobject or kind.kind not in "biufUS":
        raise Damaged(f"it holds {kind}, and not numbers or texts")
    length = prod(shape) * kind.itemsize
    if length > size:
        raise Damaged(f"it should hold {'×'.join(map(str, shape))} values, and holds less")
    content = stream.read()  # to its end, where a member's checksum is looked at
    if len(content) != length:
        raise Damaged(f"it should hold {'×'.join(map(str, shape))} values of {kind}, and does not")
    return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")


def _csv(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    places = {file: place for file in files if file.suffix.lower() in (".csv", ".tsv") and (place := _places(file, label))}
    splits: dict[str, Path] = {}
    for file in sorted(places, key=str):
        split = split_in(file.relative_to(root)) or "train"
        if split in splits:
            both = some([shown(f.relative_to(root)) for f in (splits[split], file)])
            raise UserError(f"{where}: two CSV files of {split} rows: {both}\nallowed: one a split")
        splits[split] = file

    def load(source: Source) -> dict[str, Rows]:
        return {split: _rows(source, *_read(source, file, places[file], csv)) for split, file in splits.items()}

    return Found("CSV files of pixels", list(splits.values()), load) if splits else None


@dataclass(frozen=True)
class Places:
    """How a CSV file of pixels is written: its separator, whether it has a header, and the column of the classes."""

    separator: str
    header: bool
    label: int


def _places(file: Path, label: str | None) -> Places | None:
    """Returns how a file is written that holds pixels and classes; None for any other file."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            first, second = stream.readline(LONGEST_LINE), stream.readline(LONGEST_LINE)
    except OSError:
        return None
    separator = max(",;\t", key=first.count)
    head, cells = ([cell.strip().strip('"') for cell in line.split(separator)] for line in (first, second or first))
    numbers = sum(map(_is_number, cells))
    if len(cells) != len(head) or len(head) <= LEAST_PIXELS or numbers < len(cells) - 1:
        return None
    header = sum(map(_is_number, head)) < len(head) - 1
    wanted = (label.lower(),) if label else LABELS
    named = [i for name in wanted for i, cell in enumerate(head) if header and cell.lower() == name]
    if not named and (label or isqrt(len(head) - 1) ** 2 != len(head) - 1):
        return None
    return Places(separator, header, named[0] if named else 0)


def csv(file: Path, places: Places) -> tuple[np.ndarray, list]:
    """Returns the values [rows, pixels] and the labels of a CSV file of pixels.

    Raises:
        Damaged: a cell holds no number.
    """
    import pandas

    how = {"header": 0 if places.header else None, "encoding": "utf-8-sig", "keep_default_na": False, "na_values": [""]}
    table = pandas.read_csv(file, sep=places.separator, **how)
    labels = table.iloc[:, places.label]
    pixels = table.drop(columns=table.columns[places.label])
    for name, kind in pixels.dtypes.items():
        if kind.kind not in "iuf":
            raise Damaged(f"its column {name} holds something else than numbers")
    if (empty := pixels.isna().any(axis=1)).any():
        raise Damaged(f"its row {int(empty.argmax())} has too few values")
    return pixels.to_numpy(), labels.astype(object).where(labels.notna(), None).tolist()


def _is_number(cell: str) -> bool:
    try:
        return float(cell) is not None
    except ValueError:
        return False


def _read(source: Source, file: Path, how: Any, reader: Callable) -> Any:
    """Returns what `reader` reads; whatever is wrong with a file becomes one sentence."""
    try:
        return reader(file, how)
    except UNREADABLE as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(f"{source.where}: {shown(file.relative_to(source.root))} can't be read ({reason})\n{WHOLE}") from error


def _rows(source: Source, pictures: np.ndarray, labels: np.ndarray | list) -> Rows:
    """Returns the rows of values and labels that belong together."""
    labels = np.asarray(labels) if not isinstance(labels, list) else labels
    if isinstance(labels, np.ndarray):
        labels = _one_each(source, labels)
    if len(pictures) != len(labels):
        raise UserError(f"{source.where}: {len(pictures)} pictures, and {len(labels)} labels\nallowed: as many of both")
    return Rows(as_pictures(source.where, pictures), labels)


def _one_each(source: Source, labels: np.ndarray) -> list:
    if labels.ndim > 1 and prod(labels.shape[1:]) == 1:
        labels = labels.reshape(len(labels))
    if labels.ndim == 2 and labels.dtype.kind in "biuf" and (np.sort(labels, 1) == np.eye(1, labels.shape[1])[:, ::-1]).all():
        labels = labels.argmax(1)
    if labels.ndim != 1:
        raise UserError(f"{source.where}: labels of shape {list(labels.shape)}\nallowed: one a row, or one 1 a row among 0s")
    return labels.tolist()


def as_pictures(where: str, values: np.ndarray) -> np.ndarray:
    """Returns values as [rows, height, width] or [rows, height, width, channels].

    Raises:
        UserError: their shape is none of pictures.
    """
    shape = values.shape
    if values.dtype.kind not in "biuf":
        raise UserError(f"{where}: values of type {values.dtype}\nallowed: numbers")
    if values.ndim == 2 and (side := isqrt(shape[1])) ** 2 == shape[1] and side:
        return values.reshape(-1, side, side)
    if values.ndim == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4):
        values = values.transpose(0, 2, 3, 1)
    if min(values.shape[1:], default=0) and (values.ndim == 3 or (values.ndim == 4 and values.shape[3] in (1, 3, 4))):
        return values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    raise UserError(
        f"{where}: values of shape {list(shape)} are no pictures\n"
        "allowed: [rows, height, width], with channels (1, 3 or 4) last or second, or [rows, height²]"
    )


def eight_bits(
    splits: dict[str, np.ndarray], limits: tuple[float, float] | None, where: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the values of all splits as uint8, and a sentence where their range was concluded from them.

    Args:
        limits: the values that become 0 and 255; None: by type and extremes of all values together.

    Raises:
        UserError: the values have a range that nobody has stated, or are no numbers.
    """
    filled = [values for values in splits.values() if values.size]
    if limits is None and all(values.dtype == bool for values in filled):
        limits = (0, 1)
    low, high = _extremes(filled)
    notes = []
    if limits is None and all(values.dtype == np.uint8 for values in filled):
        limits = (0, 255)
    if limits is None:
        known = [(0, 255)]
        if any(values.dtype.kind == "f" for values in filled):
            known.insert(0, (0, 1))
        elif all(values.dtype == np.uint16 for values in filled):
            known.append((0, 65535))
        limits = next(((least, most) for least, most in known if least <= low and high <= most), None)
        if limits is None:
            raise UserError(
                f"{where}: its values are from {low:g} to {high:g}\nallowed: dataset.range=[LOW,HIGH], those of black and white"
            )
        if limits != (0, 255) or any(values.dtype.kind == "f" for values in filled):
            notes.append(f"values from {low:g} to {high:g} are read as {limits[0]} to {limits[1]} (or say dataset.range)")
    try:
        return {split: scaled(values, *limits) for split, values in splits.items()}, notes
    except NotEightBits as error:
        raise UserError(f"{where}: {error}") from error


def _extremes(arrays: list[np.ndarray]) -> tuple[float, float]:
    return (min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)) if arrays else (0.0, 0.0)
