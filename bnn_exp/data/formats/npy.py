"""Reads NumPy files, .npz and .npy. The names of the arrays tell images, labels and splits."""

import re
import zipfile
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from bnn_exp.data.messages import shown, some
from bnn_exp.data.pixel_arrays import Damaged, paired, read, refuse_labels_alone
from bnn_exp.data.split_names import split_in, split_of
from bnn_exp.data.undecoded import Found, Rows, Source
from bnn_exp.errors import UserError

IMAGES = {"x", "images", "image", "imgs", "img", "data", "pixels"}
TARGETS = {"y", "labels", "label", "targets", "target", "classes"}
# A split at the beginning or the end of a name, as in xtrain.
AFFIX = re.compile(r"^(train|test|valid|val)(?=.)|(?<=.)(train|test|valid|val)$")


Place = tuple[Path, str | None]  # where an array lies: its file, and its name in an .npz file


def find(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Returns the NumPy files with the images and labels of each split; None if there are none.

    Images and labels lie in one .npz file or in .npy files of one folder.

    Args:
        label: the name of the arrays with the labels; None to find the arrays by their usual names.

    Raises:
        UserError: several arrays may be the images or the labels of a split, or labels have no images.
    """
    found: dict[tuple[str, Path, str], dict[str, Place]] = {}  # by (split, .npz file or folder of .npy files, kind)
    for file in sorted(files, key=str):
        if file.suffix.lower() == ".npy":
            members: dict[str, str | None] = {file.stem: None}
            group = file.parent
        elif file.suffix.lower() == ".npz":
            members = {name: name for name in _members(file)}
            group = file
        else:
            continue
        for name, member in members.items():
            kind = "labels" if label is not None and name == label else _kind(name, label)
            split = split_in(Path(name)) or _prefix_split(name) or split_in(file.relative_to(root)) or "train"
            if kind:
                found.setdefault((split, group, kind), {})[name] = file, member
    for (split, _, kind), those in found.items():
        if len(those) > 1:
            raise UserError(
                f"{where}: several arrays may be the {split} {kind}: {some(sorted(those))}\n"
                "allowed: one of them; or dataset.label=NAME, where the labels are meant"
            )
    splits: dict[str, tuple[Place, Place]] = {}
    for split, group, kind in found:
        if kind == "images" and (split, group, "labels") in found:
            if split in splits:
                both = some(sorted({shown(splits[split][0][0].relative_to(root)), shown(group.relative_to(root))}))
                raise UserError(f"{where}: several datasets of {split} rows: {both}\nallowed: the path of one of them")
            images, labels = (next(iter(found[split, group, kind].values())) for kind in ("images", "labels"))
            splits[split] = images, labels
    alone = {name for (split, group, kind), those in found.items() for name in those if (split, group, "images") not in found}
    refuse_labels_alone(alone, where)
    if not splits:
        return None

    def load(source: Source) -> dict[str, Rows]:
        return {split: paired(source, *(read(source, *place, npy) for place in pair)) for split, pair in splits.items()}

    used = list({file: None for pair in splits.values() for file, _ in pair})
    plan = repr([(split, [(file.name, member) for file, member in pair]) for split, pair in splits.items()])
    return Found("NumPy arrays", used, load, plan)


def _kind(name: str, label: str | None) -> str | None:
    """Returns "images" or "labels" for an array name such as x_train, train_images, Xtest or y; None for other names.

    If the user names the array of labels (`label`), no other name means labels.
    """
    words = re.findall(r"[a-z]+|[0-9]+", name.lower())
    rest = [word for word in (AFFIX.sub("", word) for word in words if not split_of(word)) if word]
    if len(rest) == 1 and rest[0] in IMAGES:
        return "images"
    return "labels" if label is None and len(rest) == 1 and rest[0] in TARGETS else None


def _prefix_split(name: str) -> str | None:
    match = re.search(r"(train|test|valid|val)", name.lower())
    return split_of(match[1]) if match else None


def _members(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def npy(file: Path, member: str | None = None) -> np.ndarray:
    """Returns the array of an .npy file, or of the member `member` of an .npz file.

    Raises:
        Damaged: the content is no array of numbers or texts, or its size differs from the size in its header.
    """
    if member is None:
        with file.open("rb") as stream:
            return _npy(stream, file.stat().st_size)
    with zipfile.ZipFile(file) as archive, archive.open(f"{member}.npy") as stream:
        if damaged := archive.testzip():  # checks all members: the damaged name of a member could hide an array
            raise Damaged(f"its part {damaged} is damaged")
        return _npy(stream, archive.getinfo(f"{member}.npy").file_size)


def _npy(stream: IO[bytes], size: int) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
    shape, fortran, kind = header(stream)
    if kind.hasobject or kind.kind not in "biufUS":
        raise Damaged(f"it holds {kind}, and not numbers or texts")
    length = prod(shape) * kind.itemsize
    if length > size:
        raise Damaged(f"it should hold {'×'.join(map(str, shape))} values, and holds less")
    content = stream.read()  # reading to the end makes zipfile verify the checksum
    if len(content) != length:
        raise Damaged(f"it should hold {'×'.join(map(str, shape))} values of {kind}, and does not")
    return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
