"""Decodes a dataset: the rows of its splits become arrays of pixels and labels."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from bnn_exp.data.classes import classes_of, missing
from bnn_exp.data.decode_images import HasColours, decode_images, one_colour
from bnn_exp.data.images import Pixels
from bnn_exp.data.pixel_arrays import eight_bits
from bnn_exp.data.split_names import split_of
from bnn_exp.data.undecoded import Rows, Source
from bnn_exp.errors import UserError

COPIES = 0.01  # share of test images that are train images too, above which a warning is given


@dataclass(frozen=True)
class Reading:
    """The settings that decide how the rows of a dataset become arrays.

    Args:
        label: the column of the classes, if a table has several candidates.
        size: the side in pixels of the square to which images are fitted; None if all images have one size.
        channels: 1 (grey) or 3 (RGB); None means 3 if any image has colours, else 1.
        pixels: the conversion of an image to pixels.
        test_fraction: the share of each class that becomes test rows, if the dataset has no test rows.
    """

    label: str | None = None
    size: int | None = None
    channels: int | None = None
    pixels: Pixels = field(default_factory=Pixels)
    test_fraction: float = 0.2


def decode(source: Source, reading: Reading) -> dict:
    """Reads and decodes a dataset. Returns the fields of `arrays.Arrays` by name, without `mean`, `std` and `key`.

    Raises:
        UserError: a part of the dataset can't be read.
    """
    splits = _by_role(source)
    classes, labels = classes_of(splits, source.where)
    images = _images(source, splits, reading)
    files = {split: rows.files for split, rows in splits.items()}
    own_test = "test" in splits
    if "train" not in splits:  # a dataset without train rows serves for evaluation only
        images["train"], labels["train"], files["train"] = images["test"][:0], labels["test"][:0], ()
    elif not own_test:
        _set_apart(source, images, labels, files, reading.test_fraction)
    if len(labels["train"]):
        source.warnings += missing(classes, labels)
    for split in images:
        if len(found := one_colour(images[split])):
            n, first = len(found), files[split][found[0]] if files[split] else f"row {found[0]}"
            source.warnings.append(f"{n} {split} image{' has' if n == 1 else 's have'} only one colour: {first}")
    _warn_of_copies(source, images)
    return {
        **{f"{split}_images": array for split, array in images.items()},
        **{f"{split}_labels": array for split, array in labels.items()},
        "classes": classes,
        "notes": tuple(source.notes),
        "warnings": tuple(source.warnings),
        "test_names": files["test"],
        "train_names": () if own_test else files["train"],
        "own_test": own_test,
    }


def _by_role(source: Source) -> dict[str, Rows]:
    """Returns the rows of each split: train, validation, test. Without test rows, validation rows serve as test rows."""
    loaded: dict[str, Rows] = {}
    for name, rows in source.load(source).items():
        if (role := split_of(name)) and len(rows.labels):
            loaded[role] = rows
    if not loaded:
        raise UserError(f"{source.where}: it has no rows\nallowed: a dataset with train rows, or with test rows to evaluate on")
    if "test" not in loaded and "validation" in loaded:
        loaded["test"] = loaded.pop("validation")
        source.notes.append("there are no test rows: the validation rows serve as test rows")
    return {role: loaded[role] for role in ("train", "validation", "test") if role in loaded}


def _images(source: Source, splits: dict[str, Rows], reading: Reading) -> dict[str, np.ndarray]:
    """Returns the decoded images of each split: uint8 [rows, channels, height, width]."""
    arrays = {split: rows.pictures for split, rows in splits.items() if isinstance(rows.pictures, np.ndarray)}
    narrow, notes, warnings = eight_bits(arrays, reading.pixels.range, source.where)
    source.notes += notes
    source.warnings += warnings
    pixels = Pixels(reading.pixels.fit, reading.pixels.background) if narrow else reading.pixels
    for channels in (reading.channels,) if reading.channels else (1, 3):
        images, shape = {}, None
        try:
            for split, rows in splits.items():
                pictures = narrow.get(split, rows.pictures)
                if isinstance(pictures, np.ndarray) and _as_they_are(pictures, channels, reading.size, shape):
                    images[split] = pictures[:, None] if pictures.ndim == 3 else pictures.transpose(0, 3, 1, 2).copy()
                else:
                    images[split] = decode_images(
                        pictures,
                        pixels,
                        channels,
                        reading.size,
                        shape,
                        may_be_grey=channels == 1 and not reading.channels,
                        name=lambda i: f"{source.where}: {split} {rows.name(i)}",  # noqa: B023
                    )
                shape = images[split].shape[1:]
        except HasColours:
            continue
        return images
    raise AssertionError("every image can be decoded to 3 channels")


def _as_they_are(values: np.ndarray, channels: int, size: int | None, shape: tuple[int, ...] | None) -> bool:
    """Returns True if 8-bit `values` of images have the requested channels and size, and the shape of earlier splits.

    Args:
        values: [rows, height, width] or [rows, height, width, channels].
        size: the requested side in pixels; None if any size will do.
        shape: the image shape (channels, height, width) of the earlier splits; None for the first split.
    """
    height, width = values.shape[1:3]
    own = values.shape[3] if values.ndim == 4 else 1
    return own == channels and size in (None, height) and size in (None, width) and shape in (None, (own, height, width))


def _set_apart(source: Source, images: dict, labels: dict, files: dict, fraction: float) -> None:
    """Moves the share `fraction` of the train rows to the test split, from every class alike.

    Changes `images`, `labels` and `files`, which hold a value for each split, in place. The choice of rows is equal in
    every run.
    """
    from bnn_exp.data.dataset import stratified

    test = stratified(labels["train"], fraction)
    if not test.any() or test.all():
        raise UserError(
            f"{source.where}: no test rows, and too few rows to set {fraction:g} of them apart\n"
            "allowed: test rows beside the train rows, or a larger dataset.test_fraction"
        )
    for held in (images, labels):
        held["test"], held["train"] = held["train"][test], held["train"][~test]
    if names := files["train"]:
        files["train"], files["test"] = (tuple(np.array(names, object)[rows]) for rows in (~test, test))
    else:
        files["test"] = ()
    source.notes.append(
        f"there are no test rows: {test.sum():,} of {len(test):,} rows serve as such, of every class alike "
        f"(dataset.test_fraction={fraction:g})"
    )


def _warn_of_copies(source: Source, images: dict[str, np.ndarray]) -> None:
    def prints(split: str) -> list[bytes]:
        return [hashlib.blake2b(image, digest_size=8).digest() for image in np.ascontiguousarray(images[split])]

    known = set(prints("train"))
    copies = sum(print_ in known for print_ in prints("test"))
    if copies > COPIES * len(images["test"]):
        source.warnings.append(f"{copies:,} of {len(images['test']):,} test images are train images too")
