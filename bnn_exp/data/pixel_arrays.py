"""Checks arrays of numbers that hold images, and scales their values to 8 bits."""

import zipfile
import zlib
from collections.abc import Callable
from math import isqrt, prod
from pathlib import Path
from typing import Any

import numpy as np

from bnn_exp.data.images import NotEightBits, scaled
from bnn_exp.data.messages import WHOLE, short_reason, shown, some
from bnn_exp.data.undecoded import Rows, Source
from bnn_exp.errors import UserError

DARK = 32  # a warning is given if all pixels, 0…255, are below this value
LEAST_PIXELS = 16  # a table with more columns of numbers than this holds pixels
UNREADABLE = (
    ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile, MemoryError, OverflowError, LookupError, NotImplementedError,
)  # fmt: skip


class Damaged(ValueError):
    """A file does not have the content that its name promises."""


def read(source: Source, file: Path, how: Any, reader: Callable) -> Any:
    """Calls `reader(file, how)` and returns the result. `source` is the dataset of the file, for error messages.

    Raises:
        UserError: the file can't be read. The message is one sentence, whatever the reader raised.
    """
    try:
        return reader(file, how)
    except UNREADABLE as error:
        raise UserError(
            f"{source.where}: {shown(file.relative_to(source.root))} can't be read ({short_reason(error)})\n{WHOLE}"
        ) from error


def refuse_labels_alone(names: set[str], where: str) -> None:
    """Raises UserError if `names`, the names of labels without images, is not empty. `where` names the dataset.

    Images without labels are allowed: competitions publish test rows without labels.
    """
    if names:
        raise UserError(f"{where}: no images belong to {some(sorted(names))}\nallowed: images and labels for each split")


def paired(source: Source, pictures: np.ndarray, labels: np.ndarray | list) -> Rows:
    """Returns the rows of one split from an array of images and their labels. One-hot labels become class numbers.

    Raises:
        UserError: the numbers of images and labels differ, or the shape of an array does not fit.
    """
    labels = np.asarray(labels) if not isinstance(labels, list) else labels
    if isinstance(labels, np.ndarray):
        labels = _one_each(source, labels)
    if len(pictures) != len(labels):
        raise UserError(f"{source.where}: {len(pictures)} images, but {len(labels)} labels\nallowed: equal numbers of both")
    return Rows(as_pictures(source.where, pictures), labels)


def _one_each(source: Source, labels: np.ndarray) -> list:
    if labels.ndim > 1 and prod(labels.shape[1:]) == 1:
        labels = labels.reshape(len(labels))
    if labels.ndim == 2 and labels.dtype.kind in "biuf" and (np.sort(labels, 1) == np.eye(1, labels.shape[1])[:, ::-1]).all():
        labels = labels.argmax(1)
    if labels.ndim != 1:
        raise UserError(f"{source.where}: labels of shape {list(labels.shape)}\nallowed: one label per row, or one-hot rows")
    return labels.tolist()


def as_pictures(where: str, values: np.ndarray) -> np.ndarray:
    """Returns the values of images as [rows, height, width] or [rows, height, width, channels].

    Args:
        where: the name of the dataset in error messages.

    Raises:
        UserError: images do not have this shape or type.
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
        f"{where}: values of shape {list(shape)} are no images\n"
        "allowed: [rows, height, width], with channels (1, 3 or 4) last or second, or [rows, height²]"
    )


def eight_bits(
    splits: dict[str, np.ndarray], limits: tuple[float, float] | None, where: str
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Returns the values of all splits as uint8, notes about the conversion, and warnings.

    Args:
        limits: the values that become 0 and 255; None to derive the two from type, minimum and maximum of the values.

    Raises:
        UserError: the range is unclear, differs between splits, or a value is not a number.
    """
    filled = {split: values for split, values in splits.items() if values.size}
    if not filled:
        return splits, [], []
    notes, warnings, concluded = [], [], limits is None
    if limits is None:
        known = {split: _range_of(values, where) for split, values in filled.items()}
        if len(set(known.values())) > 1:
            ranges = ", ".join(f"{split} {low:g} to {high:g}" for split, (low, high) in known.items())
            raise UserError(f"{where}: the splits have values of different ranges ({ranges})\nallowed: one range in all splits")
        limits = next(iter(known.values()))
        if limits != (0, 255) or any(values.dtype.kind == "f" for values in filled.values()):
            notes.append(f"values are read as numbers from {limits[0]} to {limits[1]} (or say dataset.range)")
    try:
        narrow = {split: scaled(values, *limits) for split, values in splits.items()}
    except NotEightBits as error:
        raise UserError(f"{where}: {error}\nallowed: numbers") from error
    if concluded and (most := max(int(values.max()) for values in narrow.values() if values.size)) < DARK:
        warnings.append(f"the images are dark: no value is above {most} of 255; dataset.range=[LOW,HIGH] scales them")
    return narrow, notes, warnings


def _range_of(values: np.ndarray, where: str) -> tuple[int, int]:
    """Returns the values that mean black and white in a split, from the type, minimum and maximum of its values.

    Raises:
        UserError: type and values do not decide the range.
    """
    if values.dtype == bool:
        return 0, 1
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0, 1
    if low >= 0 and high <= 255:
        return 0, 255
    if values.dtype == np.uint16:
        return 0, 65535
    raise UserError(
        f"{where}: its values are from {low:g} to {high:g}\nallowed: dataset.range=[LOW,HIGH], those of black and white"
    )
