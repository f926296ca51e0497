"""Reads datasets in NumPy's files, .npz and .npy, whose arrays are found by their names."""

import re
import zipfile
from math import prod
from pathlib import Path

import numpy as np

from bnn_exp.data.rows import Found, Rows, Source, split_in, split_of
from bnn_exp.data.values import Damaged, paired, read, refuse_labels_alone

IMAGES = {"x", "images", "image", "imgs", "img", "data", "pixels"}
TARGETS = {"y", "labels", "label", "targets", "target", "classes"}
AFFIX = re.compile(r"^(train|test|valid|val)(?=.)|(?<=.)(train|test|valid|val)$")  # of a split, as in xtrain


def find(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Finds the arrays of pictures and of labels of each split."""
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
    refuse_labels_alone({own["labels"][1] or own["labels"][0].name for own in arrays.values() if "images" not in own}, where)
    if not splits:
        return None

    def load(source: Source) -> dict[str, Rows]:
        loaded = {}
        for split, own in splits.items():
            pictures, labels = (read(source, *own[kind], npy) for kind in ("images", "labels"))
            loaded[split] = paired(source, pictures, labels)
        return loaded

    return Found("NumPy arrays", list({file: None for own in splits.values() for file, _ in own.values()}), load)


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
