"""Datasets that a plugin registers: calls the plugin's function and checks the rows that it returns."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bnn_exp.config import plugins
from bnn_exp.config.datasets import DATASETS, Entry
from bnn_exp.config.registry import found, home, module_name
from bnn_exp.errors import UserError, reason
from bnn_exp.records.files import file_sha256

SPLITS = ("train", "validation", "test")
IMAGES = "images uint8 [rows, channels, height, width] or [rows, height, width]"


def decoded(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Calls the function of the dataset `name` and returns its rows, with the field names of `bnn_exp.data.arrays.Arrays`.

    Returns:
        `classes`, and per split images uint8 [rows, channels, height, width] and labels int64 [rows].

    Raises:
        UserError: the function fails, or does not return labelled images.
    """
    make = DATASETS[name].load()
    given = _called(name, make, settings)
    if not isinstance(given, Mapping) or not {"train", "test"} <= given.keys() <= {*SPLITS, "classes"}:
        keys = f"the keys {', '.join(map(str, given))}" if isinstance(given, Mapping) else type(given).__name__
        allowed = '{"train": (images, labels), "test": (images, labels)}, perhaps "validation" and "classes" too'
        raise _refused(name, make, keys, allowed)
    splits = {split: _pair(name, make, split, given[split]) for split in SPLITS if split in given}
    classes = _classes(name, make, given.get("classes"), splits["train"][1])
    rows: dict[str, Any] = {"classes": classes}
    for split, (images, labels) in splits.items():
        rows[f"{split}_images"] = _images(name, make, split, images, rows.get("train_images"))
        rows[f"{split}_labels"] = _labels(name, make, split, labels, classes, len(images))
    return rows


def found_by(name: str, settings: Mapping[str, Any]) -> str | None:
    """Returns a text that changes when the rows of the dataset `name` change; None if its plugin does not name its files.

    The text holds the settings, a hash of the plugin's source, and a hash of each file.

    Raises:
        UserError: a file can't be read.
    """
    entry = DATASETS[name]
    if entry.files is None:
        return None
    files = [Path(file) for file in _called(name, entry.files, settings)]
    digests = [(str(file), _digest(name, file)) for file in files]
    return f"own {name} {json.dumps([dict(settings), _source(entry), digests], default=str)}"


def _source(entry: Entry) -> str:
    """Returns the SHA-256 of the plugin that defines the function of a dataset; the function's name if no plugin does."""
    module = module_name(found(entry.home).__module__)
    return next((plugin.sha256 for plugin in plugins.loaded() if plugin.module == module), home(entry.home))


def _digest(name: str, file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise UserError(f"dataset={name}: {file} can't be read ({error.strerror})\nallowed: files that you may read") from error


def _called(name: str, function: Callable, settings: Mapping[str, Any]) -> Any:
    try:
        return function(**settings)
    except UserError:
        raise
    except Exception as error:  # the function is the user's code, which may raise anything
        raise UserError(
            f"dataset={name}: {home(function)} failed: {reason(error)}\nallowed: settings that it can read"
        ) from error


def _refused(name: str, make: Callable, what: str, allowed: str) -> UserError:
    return UserError(f"dataset={name}: {home(make)} returns {what}\nallowed: {allowed}")


def _pair(name: str, make: Callable, split: str, value: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise _refused(name, make, f"{type(value).__name__} as {split} rows", f'"{split}": (images, labels)')
    return np.asarray(value[0]), np.asarray(value[1])


def _classes(name: str, make: Callable, given: Any, labels: np.ndarray) -> tuple[str, ...]:
    """Returns the class names: the names `given`; else 0 … max for whole-number labels, or the sorted texts of other labels."""
    if given is not None:
        classes = tuple(map(str, given))
    elif labels.dtype.kind in "iu" and labels.size:
        classes = tuple(map(str, range(int(labels.max()) + 1)))
    else:
        classes = tuple(sorted({str(label) for label in labels.ravel().tolist()}))
    if not classes or len(set(classes)) < len(classes):
        raise _refused(name, make, f"the classes {list(classes)[:6]}", "one name or more, each once")
    return classes


def _images(name: str, make: Callable, split: str, images: np.ndarray, train: np.ndarray | None) -> np.ndarray:
    made = images[:, None] if images.ndim == 3 else images
    shape = train.shape[1:] if train is not None else made.shape[1:]
    if made.dtype != np.uint8 or made.ndim != 4 or not made.size or made.shape[1:] != shape:
        like = f" of {list(shape)} each, as the train rows" if train is not None and made.shape[1:] != shape else ""
        raise _refused(name, make, f"{split} images {images.dtype} {list(images.shape)}", f"{IMAGES}, one row or more{like}")
    return np.ascontiguousarray(made)


def _labels(name: str, make: Callable, split: str, labels: np.ndarray, classes: tuple[str, ...], rows: int) -> np.ndarray:
    allowed = f"{rows} labels of {split} rows: whole numbers from 0 to {len(classes) - 1}, or names of classes"
    if labels.shape != (rows,):
        raise _refused(name, make, f"{split} labels of shape {list(labels.shape)}", allowed)
    if labels.dtype.kind not in "iu":
        places = {one: i for i, one in enumerate(classes)}
        labels = np.array([places.get(str(label), -1) for label in labels.tolist()], np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise _refused(name, make, f"no class for {split} row {wrong[0]}", allowed)
    return labels.astype(np.int64)
