"""Reads IDX files, gzipped or not. MNIST is published in this format."""

import gzip
import re
import struct
from math import prod
from pathlib import Path

import numpy as np

from bnn_exp.data.messages import shown, some
from bnn_exp.data.pixel_arrays import Damaged, paired, read, refuse_labels_alone
from bnn_exp.data.split_names import split_of
from bnn_exp.data.undecoded import Found, Rows, Source
from bnn_exp.errors import UserError

NAME = re.compile(
    r"(?P<prefix>.*?)(?P<split>train|t10k|test|val|validation)[-_.](?P<kind>images|labels)[-_.]idx[13][-_.]ubyte(\.gz)?", re.I
)
TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def find(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Returns the pairs of IDX files among `files`, such as train-images-idx3-ubyte and train-labels-idx1-ubyte; None if none.

    Raises:
        UserError: a file of labels has no images, or the pairs belong to several datasets.
    """
    found: dict[tuple[Path, str, str, str], Path] = {}
    # In reverse order a plain file comes after its gzipped copy and replaces it.
    for file in sorted(files, key=str, reverse=True):
        if match := NAME.fullmatch(file.name):
            # Kaggle puts each file into a folder of the same name; the dataset's folder is then the one above.
            folder = file.parent.parent if NAME.fullmatch(file.parent.name) else file.parent
            found[folder, match["prefix"], split_of(match["split"]), match["kind"].lower()] = file
    pairs = {
        (folder, prefix, split): (file, found[folder, prefix, split, "labels"])
        for (folder, prefix, split, kind), file in found.items()
        if kind == "images" and (folder, prefix, split, "labels") in found
    }
    refuse_labels_alone({shown(file.name) for key, file in found.items() if key[3] == "labels" and key[:3] not in pairs}, where)
    several = sorted({shown((folder / prefix).relative_to(root)) for folder, prefix, _ in pairs})
    if len(several) > 1:
        raise UserError(f"{where}: IDX files of several datasets: {some(several)}\nallowed: the path of one of them")
    if not pairs:
        return None

    def load(source: Source) -> dict[str, Rows]:
        return {split: paired(source, *(read(source, file, None, idx) for file in pair)) for (*_, split), pair in pairs.items()}

    plan = repr([(split, *(shown(file.name) for file in pair)) for (*_, split), pair in pairs.items()])
    return Found("IDX files", [file for pair in pairs.values() for file in pair], load, plan, columns=False)


def idx(file: Path, _: None = None) -> np.ndarray:
    """Returns the array of an IDX file, gzipped or not, in the byte order of the machine.

    Raises:
        Damaged: the file is no IDX file, or its size differs from the size in its header.
    """
    with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb") as stream:
        head = stream.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES or not 1 <= head[3] <= 4:
            raise Damaged("no IDX file: it begins with other bytes")
        sizes = stream.read(4 * head[3])
        if len(sizes) < 4 * head[3]:
            raise Damaged("it ends in its header")
        shape, kind = struct.unpack(f">{head[3]}I", sizes), np.dtype(TYPES[head[2]])
        length = prod(shape) * kind.itemsize
        content = stream.read(length + 1) if length < 2**40 else b""
    if len(content) != length:
        more = "more" if len(content) > length else "less"
        raise Damaged(f"it should hold {'×'.join(map(str, shape))} values, and holds {more}")
    return np.frombuffer(content, kind).reshape(shape).astype(kind.newbyteorder("="))
