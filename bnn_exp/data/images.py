"""Makes pixels of pictures, by Pillow: one function for training, prediction and every other reader.

A picture becomes bytes in this order: EXIF turns it upright, wide values become 8 bits, transparency is laid on a ground,
the colours become grey or RGB, and the picture is fitted to a size.
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
"""A picture before decoding: a file, its bytes, or values [height, width] or [height, width, channels]; None is no picture."""


class NotEightBits(ValueError):
    """The values of a picture have a range that nobody has stated."""


@dataclass(frozen=True)
class Pixels:
    """Settings that decide the pixels of a picture. They are part of a dataset's settings, and so of a model file.

    Args:
        fit: how a picture gets another shape. `squash` changes its proportions, `crop` cuts its longer side, `pad` adds
            `background`.
        background: the colour under transparent pixels and around padded pictures: white, grey, black or #rrggbb.
        range: the values of arrays and of pictures of more than 8 bits that become 0 and 255. None: 0…65535 of 16 bits, 0…1
            of floats. Pictures of 8 bits stay as they are.
        reduced: a JPEG that gets another size may be decoded at a fraction of its own. Training does so if it has a size.
    """

    fit: str = "squash"
    background: str = "white"
    range: tuple[float, float] | None = None
    reduced: bool = True

    @classmethod
    def of_settings(cls, values: dict) -> "Pixels":
        """Returns those of a dataset's settings as plain values, as a run or a model file keeps them."""
        known = {key: values[key] for key in ("fit", "background", "range") if values.get(key) is not None}
        return cls(**known | ({"range": tuple(known["range"])} if "range" in known else {}), reduced=bool(values.get("size")))

    def of(self, picture: Image.Image, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Returns uint8 [height, width] for 1 channel, [height, width, 3] for 3.

        Args:
            size: (width, height) in pixels; None keeps that of the picture.

        Raises:
            NotEightBits: the picture has wide values, and their range is not known.
            Exception: Pillow raises many kinds for a broken picture.
        """
        mode = "L" if channels == 1 else "RGB"
        if size and self.reduced:  # at a fraction of its size, but no less than this
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
        """The background as (red, green, blue)."""
        return ImageColor.getrgb(self.background)[:3]

    def _on_ground(self, picture: Image.Image) -> Image.Image:
        """Lays a picture with transparency on the background; RGB."""
        if picture.mode in ("La", "RGBa"):
            picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
        ground = Image.new("RGBA", picture.size, (*self.ground, 255))
        return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")

    def _narrowed(self, picture: Image.Image) -> Image.Image:
        """Scales wide values to 8 bits."""
        values, clear = np.asarray(picture), picture.info.get("transparency")
        low, high = self.range or _range_of(picture, values)
        narrow = Image.fromarray(scaled(values, low, high))
        if isinstance(clear, int):  # the value that stands for "transparent"
            narrow.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return narrow


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns uint8 of the shape of `values` (any numbers): `low` becomes 0, `high` 255, and values beyond them are cut off.

    Raises:
        NotEightBits: a value is no number.
    """
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and (low, high) == (0, 65535):
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    values = values.astype(np.float64)
    if np.isnan(values).any():
        raise NotEightBits("it holds values that are no numbers")
    return np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)


def _range_of(picture: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """Returns the values that mean black and white by the type of a picture's values."""
    if picture.mode.startswith("I;16"):
        return 0, 65535
    low, high = float(values.min()), float(values.max())
    if picture.mode == "I" and picture.format in ("PNG", "PPM") and low >= 0 and high <= 65535:
        return 0, 65535  # Pillow reads 16 bits of these as 32
    if picture.mode == "F" and low >= 0 and high <= 1:
        return 0, 1
    kind = "floats" if picture.mode == "F" else "32-bit integers"
    raise NotEightBits(f"its values are {kind} from {low:g} to {high:g}: dataset.range=[LOW,HIGH] says what is black and white")


def _luminance(colour: tuple[int, int, int]) -> int:
    return int(np.asarray(Image.new("RGB", (1, 1), colour).convert("L"))[0, 0])


def opened(encoded: Encoded) -> Image.Image:
    """Returns the picture of a file, of its bytes, or of values, not decoded yet.

    Raises:
        Exception: Pillow raises many kinds for what is no picture.
    """
    if encoded is None:
        raise ValueError("there is no picture")
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded[..., 0] if encoded.shape[2:] == (1,) else encoded)
    return Image.open(encoded if isinstance(encoded, Path) else BytesIO(encoded))


def read_image(file: Path, shape: tuple[int, int, int], pixels: Pixels) -> np.ndarray:
    """Returns a picture file as uint8 of `shape` (channels, height, width), fitted to it.

    Raises:
        UserError: it can't be decoded.
    """
    channels, height, width = shape
    try:
        with quiet():
            made = pixels.of(opened(file), channels, (width, height))
    except Exception as error:  # Pillow's plug-ins raise what they like
        raise UserError(f"{file}: not a readable image ({short_reason(error)})") from error
    return made[None] if channels == 1 else made.transpose(2, 0, 1)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block Pillow's warnings and complaints, which name no picture, are not printed."""
    logging.getLogger("PIL").addHandler(SILENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
