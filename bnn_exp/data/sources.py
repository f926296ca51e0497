"""Turns a dataset's name or folder into uint8 arrays, which a cache file keeps.

Numpy only: what is wrong with the data is said before torch is imported. A cache file is found by the bytes of the files that
decide the rows (or by the hub's name) and by the settings; it is written under a temporary name and then renamed, and one
process at a time makes it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bnn_exp.config.datasets import DATASETS
from bnn_exp.config.paths import at_home
from bnn_exp.data import plugin_dataset
from bnn_exp.errors import UserError

FORMAT = 3  # of the cache files; a change makes new ones
# They stand in the metadata of a cache file.
FACTS = (
    "classes",
    "mean",
    "std",
    "key",
    "notes",
    "warnings",
    "test_names",
    "train_names",
    "own_test",
)
DIGITS = Path(__file__).with_name("digits.npz")
"""scikit-learn's `load_digits` (UCI, CC BY 4.0), levels 0…16 scaled to 0…255 and rounded; 1,437 + 360 rows from
`train_test_split(test_size=360, stratify=labels, random_state=0)`."""


@dataclass(frozen=True)
class Arrays:
    """A decoded dataset. Images are uint8 [rows, channels, height, width], labels int64 [rows].

    Args:
        mean, std: of each channel over all train pixels, of pixels/255; a channel of one value has std 0.
        key: the SHA-256 of classes, pixels and labels: equal keys, equal data, wherever they lie and in whatever form.
        validation_images, validation_labels: None where the dataset has no validation split of its own.
        notes: sentences about how the dataset was read.
        warnings: sentences about what is odd in it, but usable.
        test_names: the file of each test row, relative to the dataset's folder; empty where rows are no files.
        train_names: those of the train rows, where test rows were set apart from them.
        own_test: False where the test rows were set apart from the train rows, since the dataset has no others.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    key: str
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()
    train_names: tuple[str, ...] = ()
    own_test: bool = True

    def in_classes(self, classes: tuple[str, ...]) -> "Arrays":
        """Returns the same rows with labels that are indices of `classes`, matched by name.

        Raises:
            KeyError: a class of a test row is not among them.
        """
        if classes == self.classes:
            return self
        place = {name: i for i, name in enumerate(classes)}
        numbers = np.array([place.get(name, -1) for name in self.classes], np.int64)
        if unknown := [self.classes[label] for label in np.unique(self.test_labels) if numbers[label] < 0]:
            raise KeyError(unknown[0])
        labels = {name: numbers[value] for name, value in vars(self).items() if name.endswith("_labels") and value is not None}
        return replace(self, **labels, classes=classes)

    def all_as_test(self) -> "Arrays":
        """Returns the same rows, those that serve for training among the test rows."""
        joined = {
            f"test_{what}": np.concatenate([getattr(self, f"{split}_{what}") for split in ("train", "test")])
            for what in ("images", "labels")
        }
        return replace(self, **joined, test_names=(*self.train_names, *self.test_names))


def cache_folder() -> Path:
    """Returns the folder of decoded datasets: $BNN_EXP_CACHE, else the user's cache folder."""
    folder = os.environ.get("BNN_EXP_CACHE") or platformdirs.user_cache_dir("bnn_exp")
    return Path(at_home(folder)) / "datasets"


def read(name: str, *place: Any, **settings: Any) -> Arrays:
    """Returns the rows of the dataset `name`, for the settings of it that decide them.

    Args:
        place, settings: the arguments of `_read`; of a dataset of one's own all its settings, by name.

    Raises:
        UserError: they can't be read.
    """
    return _own(name, settings) if name in DATASETS else _read(name, *place, **settings)


def _own(name: str, settings: Mapping[str, Any]) -> Arrays:
    """Returns a dataset of one's own, from the cache where it is known which files decide its rows."""

    def make() -> Arrays:
        return _arrays(plugin_dataset.decoded(name, settings))

    content = plugin_dataset.found_by(name, settings)
    return make() if content is None else _kept(name, content, make)


def _kept(name: str, content: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns what the cache has for `content`, a text that decides the rows; else what `make` makes, which the cache keeps."""
    found_by = hashlib.sha256(f"{FORMAT}\0{content}".encode()).hexdigest()
    file = cache_folder() / f"{name}-{found_by[:16]}.safetensors"
    if (arrays := _cached(file, found_by)) is None:
        with _locked(file):
            if (arrays := _cached(file, found_by)) is None:
                arrays = make()
                _save(file, arrays, found_by)
    return arrays


def _read(
    name: str,
    hub: str | None = None,
    path: str | None = None,
    label: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    fit: str = "squash",
    background: str = "white",
    range: tuple[float, float] | None = None,
    test_fraction: float = 0.2,
) -> Arrays:
    """Returns the dataset `name` from the folder or file `path`, else from the hub; `digits` from the package.

    The other arguments are those of `decode.Reading` and `images.Pixels`.

    Raises:
        UserError: the folder is missing, holds no dataset of labelled images, or the hub can't be reached.
    """
    if name == "digits":
        return _digits()
    from bnn_exp.data import decode, folder
    from bnn_exp.data.formats import hub as of_hub
    from bnn_exp.data.images import Pixels

    pixels = Pixels(fit, background, range and tuple(range), reduced=size is not None)
    reading = decode.Reading(label, size, channels, pixels, test_fraction)
    source = folder.find(Path(path), label, (hub or "").partition(":")[2]) if path else of_hub.source(name, hub, label)
    found, content = (source.notes, source.warnings), source.digest() if path else f"hub {hub}"
    source.notes, source.warnings = [], []  # from here on those of the content, which the cache keeps

    def make() -> Arrays:
        made = _arrays(decode.decode(source, reading))
        if path and source.digest() != content:
            raise UserError(f"{source.where}: its files changed while they were read\nallowed: files that nobody writes to")
        return made

    arrays = _kept(name, f"{content}\0{reading}", make)
    return replace(arrays, notes=(*found[0], *arrays.notes), warnings=(*found[1], *arrays.warnings))


def _digits() -> Arrays:
    with np.load(DIGITS) as file:
        arrays = {key: file[key] for key in file.files}
    arrays |= {split: arrays[split].astype(np.int64) for split in ("train_labels", "test_labels")}
    return _arrays({**arrays, "classes": tuple("0123456789")})


def _arrays(decoded: dict) -> Arrays:
    """Returns decoded rows with what follows from them."""
    mean, std = statistics(decoded["train_images"] if len(decoded["train_images"]) else decoded["test_images"])
    return Arrays(**decoded, mean=mean, std=std, key=content_key(decoded))


def content_key(rows: Mapping) -> str:
    """Returns the SHA-256 of the classes' names, and of the pixels and labels of each split."""
    digest = hashlib.sha256(json.dumps(list(rows["classes"])).encode())
    for part in ("train_images", "train_labels", "validation_images", "validation_labels", "test_images", "test_labels"):
        if (array := rows.get(part)) is not None:
            digest.update(f"{part} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel, of pixels/255: exact sums, by the counts of the 256 levels."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for rows in np.split(images, range(1000, len(images), 1000)):  # bincount makes eight bytes of each pixel
        counts += [np.bincount(rows[:, c].ravel(), minlength=256) for c in range(images.shape[1])]
    levels, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Within the block no other process makes this cache file.

    Raises:
        UserError: the cache can't be written.
    """
    with _writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the dataset cache {folder} can't be written ({getattr(error, 'strerror', None) or error})\n"
            "allowed: a writable folder with space, named by the variable BNN_EXP_CACHE"
        ) from error


def _cached(file: Path, found_by: str) -> Arrays | None:
    """Returns what `file` holds; None where there is no such file, or one that is damaged."""
    try:
        with safe_open(file, framework="numpy") as cached:
            about: Mapping[str, str] = cached.metadata() or {}
            if about.get("found_by") != found_by:
                return None
            tensors = {name: cached.get_tensor(name) for name in cached.keys()}  # noqa: SIM118
        facts = {name: json.loads(about[name]) for name in FACTS}
        arrays = Arrays(**tensors, **{name: tuple(fact) if isinstance(fact, list) else fact for name, fact in facts.items()})
        return arrays if content_key(vars(arrays)) == arrays.key else None
    except (FileNotFoundError, SafetensorError, TypeError, KeyError, ValueError):
        return None


def _save(file: Path, arrays: Arrays, found_by: str) -> None:
    tensors = {name: np.ascontiguousarray(value) for name, value in vars(arrays).items() if isinstance(value, np.ndarray)}
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    facts = {name: json.dumps(getattr(arrays, name)) for name in FACTS}
    with _writing(file.parent):
        try:
            save_file(tensors, temporary, {"found_by": found_by, **facts})
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
