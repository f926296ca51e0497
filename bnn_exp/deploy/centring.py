"""Makes a picture of one handwritten sign look like an image of MNIST, for `predict.centre=true`.

MNIST's images (LeCun et al., "Gradient-based learning applied to document recognition", 1998, section III.A) are light ink on
a dark ground. The ink is scaled into a box of 20×20 pixels with its proportions. Its centre of mass lies at pixel (14, 14) of
28×28. A photograph or a scan shows dark ink on paper, larger and somewhere in the picture.

Limits: one sign in a picture, on an even ground that fills most of the edge of the picture. The ground may get brighter in one
direction. Lines, shadows with an edge and other signs count as ink.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from bnn_exp.errors import UserError

BOX, SIDE = 20, 28  # MNIST's box for the ink, and the side of its images
LARGEST = 800  # the longer side in pixels; a larger picture is made smaller first
SOFT = 0.3  # a weaker pixel, of 0 to 1, is the soft edge of a stroke and does not count for the box of the ink
LIGHT_INK = ("mnist", "digits", "fashion_mnist")  # datasets of light shapes on a dark ground
FILLED = ("digits", "fashion_mnist")  # datasets whose shapes fill the frame: centring as in MNIST would make them too small
CONTRAST = 24  # grey values, of 255: a picture with a smaller contrast between ink and ground shows no ink


class NoInk(ValueError):
    """The picture is even: it shows no ink."""


@dataclass(frozen=True)
class Centred:
    """The facts of a picture that was centred, for the user.

    Args:
        inverted: True if light and dark were exchanged.
        size: (width, height) of the picture in pixels.
        box: (left, top, right, bottom) of the ink in the picture.
        scaled: (width, height) of the ink in the result.
        at: (x, y) of the ink's upper left corner in the result.
    """

    inverted: bool
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    scaled: tuple[int, int]
    at: tuple[int, int]

    def __str__(self) -> str:
        left, top, right, bottom = self.box
        shown = "inverted, " if self.inverted else ""
        return f"{shown}ink {right - left}×{bottom - top} at ({left}, {top}) → {self.scaled[0]}×{self.scaled[1]} at {self.at}"


def centred(grey: np.ndarray, shape: tuple[int, int], light_ink: bool) -> tuple[np.ndarray, Centred]:
    """Returns a picture as an image like MNIST's, uint8 of `shape`, and the facts of what was done.

    Args:
        grey: uint8 [height, width].
        shape: (height, width) of the result. The box of the ink has 20/28 of its shorter side.
        light_ink: True for light ink on a dark ground in the result, as in MNIST.

    Raises:
        NoInk: the picture shows no ink.
    """
    picture = Image.fromarray(grey)
    factor = max(1, -(-max(picture.size) // LARGEST))
    ink, is_light = _ink(np.asarray(picture.reduce(factor)))
    left, top, right, bottom = _box(ink > SOFT)
    side = max(1, round(min(shape) * BOX / SIDE))
    scale = side / max(right - left, bottom - top)
    scaled = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    cut = Image.fromarray(ink[top:bottom, left:right]).resize(scaled, Image.Resampling.BICUBIC)
    small = np.asarray(cut).clip(0)
    at = [_place(small.sum(axis), size) for axis, size in ((0, shape[1]), (1, shape[0]))]
    image = np.zeros(shape, np.uint8)
    image[at[1] : at[1] + scaled[1], at[0] : at[0] + scaled[0]] = np.rint(small * (255 / small.max()))
    box = tuple(min(n * factor, limit) for n, limit in zip((left, top, right, bottom), picture.size * 2, strict=True))
    facts: Any = (is_light != light_ink, picture.size, box, scaled, tuple(at))
    return image if light_ink else 255 - image, Centred(*facts)


def light_ink(about: dict[str, Any], mean: np.ndarray | None) -> bool | None:
    """Returns True if a network was trained on light ink on a dark ground, False for dark ink; None if its file does not say.

    Args:
        about: the description of the network, see `bnn_exp.load_model`.
        mean: the mean pixel of each channel, 0 to 1; None for a network that does not hold it.
    """
    if about["image_shape"][0] != 1:
        return None
    if about["config"]["dataset"]["name"] in LIGHT_INK:
        return True
    return None if mean is None else bool(mean.mean() < 0.5)


def check(about: dict[str, Any], light: bool | None) -> None:
    """Checks that pictures can be centred for a network. `light` is the result of `light_ink`.

    Raises:
        UserError: the network takes colours, its images fill their frame, or its file does not tell ink from ground.
    """
    name = about["config"]["dataset"]["name"]
    if about["image_shape"][0] != 1:
        problem = "the network takes colour images"
    elif name in FILLED:
        problem = f"the images of dataset={name} fill their frame"
    elif light is None:
        problem = "the file of the network does not say if the ink of its training images is light or dark"
    else:
        return
    raise UserError(
        f"predict.centre=true: {problem}\nallowed: a network of dataset=mnist, or model=bncvl or vgg of grey images"
    )


def is_dark(image: np.ndarray) -> bool:
    """Returns True if the ground of an image is dark: the median of its edge is below the middle of the grey values."""
    return bool(np.median(_edge(image)) < 127.5)


def _ink(grey: np.ndarray) -> tuple[np.ndarray, bool]:
    """Returns the strength of the ink, float32 of the same shape, 0 to 1, and True if the ink is lighter than the ground."""
    difference = grey.astype(np.float32) - _ground(grey)
    low, high = np.percentile(difference, (0.1, 99.9))
    is_light = bool(high > -low)
    strength = (difference if is_light else -difference).clip(0)
    if strength.max() < CONTRAST:
        raise NoInk("it shows no ink: its grey values are nearly even")
    without_specks = np.asarray(Image.fromarray(strength.astype(np.uint8)).filter(ImageFilter.MedianFilter(3)))
    if min(grey.shape) < 2 * SIDE or without_specks.max() < CONTRAST:
        without_specks = strength.astype(np.uint8)  # thin strokes of a small picture are no specks
    limit = _threshold(without_specks)
    core = max(float(np.median(strength[without_specks > limit])), limit / 2 + 1)
    soft = ((strength - limit / 2) / (core - limit / 2)).clip(0, 1)  # the halves of a soft edge stay, noise of the ground goes
    near = Image.fromarray((without_specks > limit).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))
    return soft * np.asarray(near), is_light


def _ground(grey: np.ndarray) -> np.ndarray:
    """Returns the grey values of the paper, float32: a plane through the edge of the picture, without ink that touches it."""
    height, width = grey.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    columns = [np.ones_like(x), x / width, y / height]
    edges = [_edge(column) for column in columns]
    values = _edge(grey).astype(np.float32)
    distance = np.abs(values - np.median(values))
    near = distance <= max(3 * float(np.median(distance)), 8.0)
    plane = np.linalg.lstsq(np.stack([edge[near] for edge in edges], 1), values[near], rcond=None)[0]
    return sum(factor * column for factor, column in zip(plane, columns, strict=True))


def _edge(values: np.ndarray) -> np.ndarray:
    """Returns the values at the edge of a picture, flat. The edge is a thirtieth of each side wide."""
    high, wide = (max(1, n // 30) for n in values.shape)
    inner = values[high:-high]
    return np.concatenate([part.ravel() for part in (values[:high], values[-high:], inner[:, :wide], inner[:, -wide:])])


def _threshold(values: np.ndarray) -> int:
    """Returns Otsu's threshold of uint8 values: it divides them into two classes with the greatest variance between them."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below - sums * below[-1]) ** 2 / (below * above)
    return int(np.nan_to_num(between, posinf=0).argmax())


def _box(ink: np.ndarray) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of the pixels that are True."""
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _place(sums: np.ndarray, size: int) -> int:
    """Returns the position that brings the centre of mass of `sums` nearest to the middle of pixel `size` // 2, as in MNIST."""
    mass = float((sums * (np.arange(len(sums)) + 0.5)).sum() / sums.sum())
    return min(max(round(size // 2 + 0.5 - mass), 0), size - len(sums))
