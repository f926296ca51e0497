#!/usr/bin/env python
"""Feeds damaged files to the readers of datasets. A reader must read a file correctly, or refuse it in three lines at most.

    python scripts/fuzz_readers.py --count 20000 --seed 0

Each damaged file is a valid file with some bytes changed, removed, repeated or cut off. If our reader accepts the file, its
rows must be those that Pillow, NumPy or pyarrow read. The exit code is 1 if a row is wrong, if a message is too long, or if
an exception is no UserError.
"""

import argparse
import gzip
import io
import os
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bnn_exp.data import cache, sources
from bnn_exp.errors import UserError

SECONDS = 20  # time limit for one file
Rows = tuple[np.ndarray, list[str]]  # uint8 [rows, height, width, 3 or 1], and the class name of each row


@dataclass(frozen=True)
class Kind:
    """A kind of file: its path in a dataset, its valid content, and the function of another library that reads its train rows.

    `others` holds the other files of the dataset: content by path. `expected` returns None if the rows can't be compared.
    """

    file: str
    content: bytes
    others: dict[str, bytes]
    expected: Callable[[bytes, np.random.Generator], Rows | None]


def encoded(suffix: str, values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format=Image.registered_extensions()[f".{suffix}"], **options)
    return stream.getvalue()


def by_pillow(content: bytes, _=None) -> Rows | None:
    """Reads the one damaged image, which is the first image of class a. The other images of the dataset stay valid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = Image.open(io.BytesIO(content))
        if "transparency" in picture.info or picture.mode not in ("1", "L", "RGB", "P", "CMYK", "YCbCr"):
            return None  # our reader converts transparency and value ranges in its own way
        if picture.getexif().get(0x0112, 1) != 1:
            return None
        return np.asarray(picture.convert("RGB"))[None], ["a"]


def by_numpy_idx(content: bytes, packed: bool) -> Rows:
    raw = gzip.decompress(content) if packed else content
    types = {8: np.uint8, 9: np.int8, 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    shape = np.frombuffer(raw, ">u4", raw[3], 4)
    return np.frombuffer(raw, types[raw[2]], offset=4 + 4 * raw[3]).reshape(shape), []


def kinds(rng: np.random.Generator) -> dict[str, Kind]:
    """Returns all kinds of files by name."""
    colours = rng.integers(0, 256, (8, 12, 8, 3), dtype=np.uint8)
    smooth = np.stack([np.add.outer(np.arange(12) * 9, np.arange(8) * 13).astype(np.uint8)] * 3, 2)
    found = {}
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "tga", "pcx", "jp2"):
        others = {
            f"{split}/{name}/{i}.png": encoded("png", colours[k])
            for k, (split, name, i) in enumerate([("train", "a", 1), ("train", "b", 0), ("test", "a", 0), ("test", "b", 0)])
        }
        found[suffix] = Kind(f"train/a/0.{suffix}", encoded(suffix, smooth), others, by_pillow)
    labels = np.array([0, 1, 2, 1, 0, 2], np.uint8)
    grey = colours[:6, :8, :, 0]
    idx = {
        "images": struct.pack(">HBB3I", 0, 8, 3, *grey.shape) + grey.tobytes(),
        "labels": struct.pack(">HBB1I", 0, 8, 1, 6) + labels.tobytes(),
    }
    for packed in (False, True):
        end, pack = ("-ubyte.gz", gzip.compress) if packed else ("-ubyte", bytes)
        names = {
            f"{s}-{kind}-idx{n}{end}": pack(idx[kind]) for s in ("train", "t10k") for kind, n in (("images", 3), ("labels", 1))
        }
        for which in ("images", "labels"):
            file = next(name for name in names if name.startswith(f"train-{which}"))
            rest = {name: content for name, content in names.items() if name != file}

            def expected(content, _, which=which, packed=packed):
                values = by_numpy_idx(content, packed)[0]
                if which == "images":
                    return (values, [str(n) for n in labels]) if values.dtype == np.uint8 else None
                return (grey, [str(n) for n in values.ravel().tolist()]) if values.dtype.kind in "iu" else None

            found[f"idx {which}{' gz' if packed else ''}"] = Kind(file, names[file], rest, expected)
    stream = io.BytesIO()
    np.savez_compressed(stream, x_train=grey, y_train=labels, x_test=grey, y_test=labels)
    found["npz"] = Kind("data.npz", stream.getvalue(), {}, by_numpy_npz)
    rows = [",".join(["label", *(f"pixel{i}" for i in range(64))])]
    rows += [",".join(map(str, [label, *row])) for label, row in zip(labels, grey.reshape(6, 64), strict=True)]
    text = ("\n".join(rows) + "\n").encode()
    found["csv"] = Kind("train.csv", text, {"test.csv": text}, by_numpy_csv)
    table = parquet(colours[:6], labels.tolist())
    found["parquet"] = Kind("train.parquet", table, {"test.parquet": table}, by_pyarrow)
    return found


def by_numpy_npz(content: bytes, _) -> Rows | None:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        if not {"x_test", "y_test"} <= set(file.files):
            return None  # without test rows our reader takes some train rows as test rows
        x, y = file["x_train"], file["y_train"]
    if x.dtype != np.uint8 or x.ndim != 3 or y.dtype.kind not in "iu":
        return None
    return x, [str(n) for n in y.ravel().tolist()]


def by_numpy_csv(content: bytes, _) -> Rows | None:
    lines = content.decode("utf-8", "replace").splitlines()
    if not lines[0].startswith("label,") or b'"' in content or b"\r" in content:
        return None
    table = np.genfromtxt(lines[1:], delimiter=",")
    if (
        np.isnan(table).any()
        or table.ndim != 2
        or table.shape[1] != 65
        or not 0 <= table[:, 1:].min() <= table[:, 1:].max() <= 255
    ):
        return None
    if (table % 1).any():
        return None
    return table[:, 1:].reshape(-1, 8, 8).astype(np.uint8), [f"{n:g}" for n in table[:, 0]]


def parquet(images: np.ndarray, labels: list[int]) -> bytes:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["0", "1", "2"])})
    stream = io.BytesIO()
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels}
    datasets.Dataset.from_dict(rows, features).to_parquet(stream)
    return stream.getvalue()


def by_pyarrow(content: bytes, _) -> Rows | None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(content))
    rows = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table["image"].to_pylist()]
    names = [str(n) for n in table["label"].to_pylist()]
    return (np.stack(rows), names) if len({row.shape for row in rows}) == 1 else None


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Returns a copy of `content` with one to four random changes."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at, n = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 9))
        match rng.integers(0, 6):
            case 0:
                data[at : at + n] = rng.bytes(n)
            case 1:
                del data[at : at + n]
            case 2:
                data[at:at] = rng.bytes(n)
            case 3:
                data = data[: max(at, 1)]
            case 4 if at < len(data):
                data[at] ^= 1 << int(rng.integers(0, 8))
            case _:
                data[at : at + n] = bytes([int(rng.choice([0, 255, 127, 48, 57]))]) * n
    return bytes(data)


class TooLong(Exception):
    """Reading a file took longer than SECONDS."""


def _alarm(*_):
    raise TooLong(f"more than {SECONDS} s")


def check(kind: Kind, content: bytes, folder: Path, rng: np.random.Generator) -> str:
    """Reads a file with our reader and compares the rows.

    Returns:
        "read…" or "refused". If something is wrong, a text that begins with a word in capitals.
    """
    (folder / kind.file).write_bytes(content)
    signal.alarm(SECONDS)
    try:
        arrays = sources.read("local", path=str(folder))
    except UserError as error:
        lines = str(error).splitlines()
        return "refused" if len(lines) <= 3 and max(map(len, lines)) < 600 else f"LONG {error}"
    except Exception:
        return f"RAISED {traceback.format_exc()}"
    finally:
        signal.alarm(0)
        shutil.rmtree(cache.cache_folder(), ignore_errors=True)
    try:
        expected = kind.expected(content, rng)
    except Exception:  # the other library refuses a file that our reader accepts
        return "read, by us alone"
    if expected is None:
        return "read, not compared"
    pixels, names = expected
    found = arrays.train_images[: len(pixels)].transpose(0, 2, 3, 1)
    if pixels.ndim == 3:
        pixels = pixels[..., None].repeat(found.shape[-1], -1)
    classes = [arrays.classes[i] for i in arrays.train_labels[: len(pixels)]]
    whole = len(arrays.train_labels) == (3 if kind.file.startswith("train/") else len(pixels))
    return "read" if whole and np.array_equal(found, pixels) and classes == names else "WRONG rows"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000, help="number of damaged files, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files whose check fails")
    asked = parser.parse_args()
    signal.signal(signal.SIGALRM, _alarm)
    rng, counts, bad = np.random.default_rng(asked.seed), {}, 0
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["BNN_EXP_CACHE"] = f"{temporary}/cache"
        every = kinds(rng)
        for name, kind in every.items():
            folder = Path(temporary, name.replace(" ", "-"))
            for other, content in kind.others.items():
                (folder / other).parent.mkdir(parents=True, exist_ok=True)
                (folder / other).write_bytes(content)
            (folder / kind.file).parent.mkdir(parents=True, exist_ok=True)
            counts[name] = Counter()
            if (said := check(kind, kind.content, folder, rng)) != "read":
                print(f"{name}: the whole file: {said}")
                bad += 1
            for i in range(asked.count // len(every) + (list(every).index(name) < asked.count % len(every))):
                content = mutated(kind.content, rng)
                said = check(kind, content, folder, rng)
                counts[name][said.split(" ")[0] if said[0].isupper() else said] += 1
                if said[0].isupper():
                    bad += 1
                    if bad <= 20:
                        print(f"{name} {i}: {said}")
                    if asked.keep:
                        asked.keep.mkdir(parents=True, exist_ok=True)
                        (asked.keep / f"{name.replace(' ', '-')}-{i}").write_bytes(content)
    for name, those in counts.items():
        print(f"{name:14}", ", ".join(f"{said} {n}" for said, n in sorted(those.items())))
    total = sum(sum(those.values()) for those in counts.values())
    print(f"{total} damaged files, {bad} wrong")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
