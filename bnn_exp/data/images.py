"""Converts an image to pixels with Pillow. Training, prediction and every dataset reader use this conversion.

The steps, in this order: EXIF rotates the image upright; values of more than 8 bits become 8 bits; a background replaces
transparency; the colours become grey or RGB; the image is fitted to the requested size.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps

from bnn_exp.data.messages import short_reason
from bnn_exp.errors import UserError

WIDE_MODES = ("F", "I", "I;16", "I;16L", "I;16B", "I;16N")
SILENT = logging.NullHandler()

Encoded = Path | bytes | np.ndarray | None
"""An image before decoding: a file, bytes, or values [height, width] or [height, width, channels]; None if it is missing."""


class NotEightBits(ValueError):
    """The values of an image have more than 8 bits, and the values that mean black and white are unknown."""


@dataclass(frozen=True)
class Pixels:
    """The settings that decide the pixels of an image. A model file has these settings too, as a part of the
    dataset settings.

    Args:
        fit: how an image gets another shape. `squash` changes the proportions, `crop` cuts the longer side, `pad` adds
            `background`.
        background: the colour under transparent pixels and around padded images: white, grey, black or #rrggbb.
        range: the two values that become 0 and 255, in arrays and in images of more than 8 bits. None means 0…65535 for 16 bits
            and 0…1 for floats. Images of 8 bits do not change.
        reduced: True to decode a JPEG at a fraction of its size if the image is made smaller. Training does so if `size` is
            set.
    """

    fit: str = "squash"
    background: str = "white"
    range: tuple[float, float] | None = None
    reduced: bool = True

    @classmethod
    def of_settings(cls, values: dict) -> "Pixels":
        """Returns the pixel settings of a dataset, from the plain values that a run or a model file holds."""
        known = {key: values[key] for key in ("fit", "background", "range") if values.get(key) is not None}
        return cls(**known | ({"range": tuple(known["range"])} if "range" in known else {}), reduced=bool(values.get("size")))

    def of(self, picture: Image.Image, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Returns the pixels of an image: uint8 [height, width] for 1 channel, [height, width, 3] for 3.

        Args:
            size: (width, height) in pixels; None keeps the size of the image.

        Raises:
            NotEightBits: the values have more than 8 bits, and the values that mean black and white are unknown.
            Exception: Pillow raises exceptions of many types for a broken image.
        """
        mode = "L" if channels == 1 else "RGB"
        if size and self.reduced:  # A JPEG decodes faster at a smaller size. Twice the needed size or more keeps the quality.
            picture.draft(mode, (2 * size[0], 2 * size[1]))
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        if picture.mode in WIDE_MODES:
            picture = self._narrowed(picture)
        if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
            picture = self._on_ground(picture)
        picture = picture.convert(mode)
        if size and picture.size != size:
            picture = self._fitted(picture, size)
        return np.asarray(picture)

    def _fitted(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        if self.fit == "crop":
            return ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
        if self.fit == "pad":
            ground = self.ground if picture.mode == "RGB" else _luminance(self.ground)
            return ImageOps.pad(picture, size, Image.Resampling.BICUBIC, color=ground)
        return picture.resize(size)

    @property
    def ground(self) -> tuple[int, int, int]:
        """The background colour as (red, green, blue), 0…255."""
        return ImageColor.getrgb(self.background)[:3]

    def _on_ground(self, picture: Image.Image) -> Image.Image:
        """Returns an RGB image that shows the transparent image in front of the background."""
        if picture.mode in ("La", "RGBa"):
            picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
        ground = Image.new("RGBA", picture.size, (*self.ground, 255))
        return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")

    def _narrowed(self, picture: Image.Image) -> Image.Image:
        """Returns the image with its values scaled to 8 bits. The transparent value stays transparent."""
        values, clear = np.asarray(picture), picture.info.get("transparency")
        low, high = self.range or _range_of(picture, values)
        narrow = Image.fromarray(scaled(values, low, high))
        if isinstance(clear, int):  # an integer `clear` is the value of all transparent pixels
            narrow.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return narrow


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns `values` as uint8 of the same shape. `low` becomes 0 and `high` becomes 255; values outside are clipped.

    Raises:
        NotEightBits: a value is NaN.
    """
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and (low, high) == (0, 65535):
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    values = values.astype(np.float64)
    if np.isnan(values).any():
        raise NotEightBits("it holds NaN values")
    return np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)


def _range_of(picture: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """Returns the values that mean black and white, from the mode and the file format of an image with the pixels `values`.

    Raises:
        NotEightBits: mode and format do not decide these values.
    """
    if picture.mode.startswith("I;16"):
        return 0, 65535
    low, high = float(values.min()), float(values.max())
    if picture.mode == "I" and picture.format in ("PNG", "PPM") and low >= 0 and high <= 65535:
        return 0, 65535  # Pillow opens 16-bit images of these formats as 32-bit ones
    if picture.mode == "F" and low >= 0 and high <= 1:
        return 0, 1
    kind = "floats" if picture.mode == "F" else "32-bit integers"
    raise NotEightBits(f"its values are {kind} from {low:g} to {high:g}: dataset.range=[LOW,HIGH] says what is black and white")


def _luminance(colour: tuple[int, int, int]) -> int:
    return int(np.asarray(Image.new("RGB", (1, 1), colour).convert("L"))[0, 0])


def opened(encoded: Encoded) -> Image.Image:
    """Returns a Pillow image, not decoded yet, from a file, from bytes, or from values.

    Raises:
        Exception: Pillow raises exceptions of many types for data that is no image.
    """
    if encoded is None:
        raise ValueError("the image is missing")
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded[..., 0] if encoded.shape[2:] == (1,) else encoded)
    return Image.open(encoded if isinstance(encoded, Path) else BytesIO(encoded))


def read_image(file: Path, shape: tuple[int, int, int], pixels: Pixels) -> np.ndarray:
    """Returns an image file as uint8 of the given `shape`, (channels, height, width). The image is fitted to this shape.

    Raises:
        UserError: the file can't be decoded.
    """
    channels, height, width = shape
    made = _decoded(file, pixels, channels, (width, height))
    return made[None] if channels == 1 else made.transpose(2, 0, 1)


def read_grey(file: Path, pixels: Pixels) -> np.ndarray:
    """Returns an image file as grey values, uint8 [height, width], in its own size.

    Raises:
        UserError: the file can't be decoded.
    """
    return _decoded(file, pixels, 1)


def _decoded(file: Path, pixels: Pixels, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    try:
        with quiet():
            return pixels.of(opened(file), channels, size)
    except Exception as error:  # Pillow's plug-ins raise exceptions of any type
        raise UserError(f"{file}: not a readable image ({short_reason(error)})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager: hides the warnings and log messages of Pillow while the body runs. Pillow's messages do not name
    the image."""
    logging.getLogger("PIL").addHandler(SILENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
