"""From a dataset's name or folder to uint8 arrays in a cache file, decoded once.

Numpy only: what is wrong with the data is said before torch is imported. A cache file is keyed by the content of the folder
(or by the hub's name), written under a temporary name and then renamed, and made by one process at a time.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bnn_exp.errors import UserError

FORMAT = 2  # of the cache files; a change makes new ones
FACTS = ("classes", "mean", "std")  # that stand in their metadata
DATA_FILES = {".parquet", ".arrow", ".json", ".jsonl", ".csv", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tar", ".zip"}
DIGITS = Path(__file__).with_name("digits.npz")
"""scikit-learn's `load_digits` (UCI, CC BY 4.0), levels 0…16 scaled to 0…255 and rounded; 1,437 + 360 rows from
`train_test_split(test_size=360, stratify=labels, random_state=0)`."""


@dataclass(frozen=True)
class Arrays:
    """A decoded dataset. Images are uint8 [rows, channels, height, width], labels int64 [rows].

    `mean` and `std` are those of each channel over all train pixels, of pixels/255; a channel of one value has std 0.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    key: str  # what the arrays were made from; equal keys, equal arrays


def cache_folder() -> Path:
    """Where decoded datasets lie: $BNN_EXP_CACHE, else the user's cache folder."""
    return Path(os.environ.get("BNN_EXP_CACHE") or platformdirs.user_cache_dir("bnn_exp")) / "datasets"


def read(
    name: str, hub: str | None = None, path: str | None = None, label: str | None = None, size: int | None = None
) -> Arrays:
    """The dataset `name` from the folder `path`, else from the hub; `digits` from the package.

    `label` names the column of the classes, where there are several; `size` resizes the images to that many pixels a side.

    Raises:
        UserError: the folder is missing, holds no dataset of labelled images of one size, or the hub can't be reached.
    """
    if name == "digits":
        with np.load(DIGITS) as file:
            arrays = {key: file[key] for key in file.files}
        arrays |= {split: arrays[split].astype(np.int64) for split in ("train_labels", "test_labels")}
        mean, std = statistics(arrays["train_images"])
        return Arrays(**arrays, classes=tuple("0123456789"), mean=mean, std=std, key=_key(DIGITS.read_bytes()))
    content = _folder_digests(Path(path)) if path else [f"hub {hub}".encode()]
    key = _key(*content, json.dumps([label, size]).encode())
    file = cache_folder() / f"{name}-{key[:16]}.safetensors"
    if (arrays := _cached(file, key)) is not None:
        return arrays
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if (arrays := _cached(file, key)) is None:
                from bnn_exp.data.decode import decode

                decoded = decode(name, hub, path, label, size)
                mean, std = statistics(decoded["train_images"])
                arrays = Arrays(**decoded, mean=mean, std=std, key=key)
                _save(file, arrays)
    except OSError as error:
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError):
            raise UserError(
                f"the dataset cache {file.parent} can't be written ({error.strerror})\n"
                "allowed: a writable folder, named by the variable BNN_EXP_CACHE"
            ) from error
        raise
    return arrays


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels/255: exact sums, by the counts of the 256 levels."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for rows in np.split(images, range(1000, len(images), 1000)):  # bincount makes eight bytes of each pixel
        counts += [np.bincount(rows[:, c].ravel(), minlength=256) for c in range(images.shape[1])]
    levels, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def _key(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join([str(FORMAT).encode(), *parts])).hexdigest()


def _folder_digests(folder: Path) -> list[bytes]:
    """The names and contents of the data files in a folder, wherever it lies."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in DATA_FILES and file.is_file())
    if not files:
        raise UserError(
            f"dataset.path={folder}: {'holds no dataset' if folder.is_dir() else 'no such folder'}\n"
            "allowed: a folder that holds a dataset as the hub serves it (parquet files), or train/CLASS/… and test/CLASS/…"
        )
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(f"{file.relative_to(folder)} {hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    return digests


def _cached(file: Path, key: str) -> Arrays | None:
    """What `file` holds; None where there is no such file, or one that is damaged."""
    try:
        with safe_open(file, framework="numpy") as cached:
            about: Mapping[str, str] = cached.metadata() or {}
            if about.get("key") != key:
                return None
            tensors = {name: cached.get_tensor(name) for name in cached.keys()}  # noqa: SIM118
        facts = {name: tuple(json.loads(about[name])) for name in FACTS}
        return Arrays(**tensors, **facts, key=key)
    except (FileNotFoundError, SafetensorError, TypeError, KeyError):
        return None


def _save(file: Path, arrays: Arrays) -> None:
    tensors = {name: value for name, value in vars(arrays).items() if isinstance(value, np.ndarray)}
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        facts = {name: json.dumps(getattr(arrays, name)) for name in FACTS}
        save_file(tensors, temporary, {"key": arrays.key, **facts})
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
