"""Decodes all images of a split into one array. Large images are decoded in several threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from bnn_exp.data.images import Encoded, Pixels, opened, quiet
from bnn_exp.data.messages import short_reason
from bnn_exp.errors import UserError

LARGE = 16_000  # mean bytes of an encoded image, above which threads save more time than they cost
AT_ONCE = 256  # images that are fetched and decoded at a time
GREY_MODES = ("1", "L", "LA", "La", "F", "I", "I;16", "I;16L", "I;16B", "I;16N")


class HasColours(Exception):
    """An image has colours, although grey pixels were expected."""


def decode_images(
    pictures: Sequence[Encoded],
    pixels: Pixels,
    channels: int,
    size: int | None,
    shape: tuple[int, ...] | None,
    may_be_grey: bool,
    name: Callable[[int], str],
) -> np.ndarray:
    """Returns all images of a split in one array: uint8 [rows, channels, height, width].

    Args:
        pictures: the encoded images.
        pixels: the conversion of an image to pixels.
        size: the side in pixels of the square to which images are fitted; None if all images have one size.
        shape: (channels, height, width) of the images of earlier splits; None for the first split.
        may_be_grey: True if `channels` is 1 only as a guess. An image with colours refutes this guess.
        name: a function that returns the words for a row number in error messages.

    Raises:
        UserError: an image can't be decoded or has another size. The message names the first such image.
        HasColours: an image has colours, although `may_be_grey` is True.
    """
    make = partial(_pixels_of, pixels=pixels, channels=channels, size=(size, size) if size else None, may_be_grey=may_be_grey)
    images, rest, first = None, iter(pictures), 0
    with quiet(), ThreadPoolExecutor() as pool:
        while batch := list(islice(rest, AT_ONCE)):
            large = sum(map(_encoded_size, batch[:8])) > LARGE * len(batch[:8])
            for i, made in enumerate((pool.map if large else map)(make, batch), first):
                if isinstance(made, HasColours):
                    raise made
                if isinstance(made, Exception):
                    raise UserError(
                        f"{name(i)} can't be decoded ({short_reason(made)})\nallowed: readable images; repair or remove it"
                    ) from made
                if images is None:
                    shape = shape or (channels, *made.shape[:2])
                    images = np.empty((len(pictures), *shape), np.uint8)
                if made.shape[:2] != shape[1:]:
                    (h, w), (_, height, width) = made.shape[:2], shape
                    raise UserError(
                        f"{name(i)} is {w}×{h} pixels, those before it are {width}×{height}\n"
                        "allowed: images of one size, or dataset.size=N, which fits all images to N×N pixels"
                    )
                images[i] = made if channels == 1 else made.transpose(2, 0, 1)
            first += len(batch)
    return images


def _pixels_of(
    encoded: Encoded, pixels: Pixels, channels: int, size: tuple[int, int] | None, may_be_grey: bool
) -> np.ndarray | Exception:
    """Returns the pixels of an image. Returns an exception instead of raising it, because a thread pool does not say which
    image raised the exception."""
    try:
        picture = opened(encoded)
        if may_be_grey and picture.mode not in GREY_MODES:
            return HasColours()
        return pixels.of(picture, channels, size)
    except Exception as error:  # Pillow's plug-ins raise exceptions of any type
        return error


def one_colour(images: np.ndarray) -> np.ndarray:
    """Returns the row numbers of images in which all pixels are equal. `images` is uint8 [rows, channels, height, width]."""
    flat = images.reshape(*images.shape[:2], images.shape[2] * images.shape[3])
    return (flat == flat[:, :, :1]).all((1, 2)).nonzero()[0]


def _encoded_size(encoded: Encoded) -> int:
    if isinstance(encoded, Path):
        return encoded.stat().st_size if encoded.is_file() else 0
    return len(encoded) if isinstance(encoded, bytes) else 0
