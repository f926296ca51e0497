"""A decoded dataset as NumPy arrays, with the fingerprint of its content and the statistics of its pixels."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Arrays:
    """A decoded dataset. Images are uint8 [rows, channels, height, width], labels are int64 [rows].

    Args:
        mean, std: the mean and the standard deviation of each channel over all train pixels, of pixels/255.
        key: the SHA-256 of classes, pixels and labels. Equal data have equal keys, whatever the file format and the folder.
        validation_images, validation_labels: None if the dataset has no validation split.
        notes: sentences about how the dataset was read.
        warnings: sentences about odd, but usable data.
        test_names: the file of each test row, relative to the dataset folder; empty if rows are not files.
        train_names: the file of each train row, if the test rows were taken from the train rows; else empty.
        own_test: False if the test rows were taken from the train rows, because the dataset has no test rows.
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
        """Returns the dataset with labels that index `classes`. Classes are matched by name.

        Raises:
            KeyError: `classes` lacks the class of a test row.
        """
        if classes == self.classes:
            return self
        place = {name: i for i, name in enumerate(classes)}
        numbers = np.array([place.get(name, -1) for name in self.classes], np.int64)
        if unknown := [self.classes[label] for label in np.unique(self.test_labels) if numbers[label] < 0]:
            raise KeyError(unknown[0])
        labels: dict[str, Any] = {n: numbers[v] for n, v in vars(self).items() if n.endswith("_labels") and v is not None}
        return replace(self, **labels, classes=classes)

    def all_as_test(self) -> "Arrays":
        """Returns the dataset with all train rows and test rows as test rows, train rows first."""
        joined: dict[str, Any] = {
            f"test_{what}": np.concatenate([getattr(self, f"{split}_{what}") for split in ("train", "test")])
            for what in ("images", "labels")
        }
        return replace(self, **joined, test_names=(*self.train_names, *self.test_names))


def complete(decoded: dict) -> Arrays:
    """Returns the dataset with the fields `decoded`. Computes the missing fields: mean, standard deviation and key."""
    mean, std = statistics(decoded["train_images"] if len(decoded["train_images"]) else decoded["test_images"])
    return Arrays(**decoded, mean=mean, std=std, key=content_key(decoded))


def content_key(rows: Mapping) -> str:
    """Returns the SHA-256 of the class names and of each split's pixels and labels, as hexadecimal digits.

    Args:
        rows: the fields of `Arrays` by name.
    """
    digest = hashlib.sha256(json.dumps(list(rows["classes"])).encode())
    for part in ("train_images", "train_labels", "validation_images", "validation_labels", "test_images", "test_labels"):
        if (array := rows.get(part)) is not None:
            digest.update(f"{part} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the means and the standard deviations of the channels, of pixels/255. `images` is uint8 [rows, channels, …].

    The function counts each of the 256 levels, so no sum over many pixels loses precision.
    """
    counts = np.zeros((images.shape[1], 256), np.int64)
    for rows in np.split(images, range(1000, len(images), 1000)):  # few rows at a time: bincount needs eight bytes per pixel
        counts += [np.bincount(rows[:, c].ravel(), minlength=256) for c in range(images.shape[1])]
    levels, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())
