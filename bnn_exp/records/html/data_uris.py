"""Images inside an HTML page, as data URIs: tables of numbers as coloured pixels, and image files."""

from base64 import b64encode
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

CIVIDIS = (
    "#00204d",
    "#31446b",
    "#666970",
    "#958f78",
    "#cbba69",
    "#ffea46",
)  # the colour map cividis (Nuñez et al. 2018), which suits the colour-blind
RAMP = f"linear-gradient(90deg, {', '.join(CIVIDIS)})"
FEWER, MORE = (0, 114, 178), (213, 94, 0)
LEANING = f"linear-gradient(90deg, rgb{FEWER}, transparent, rgb{MORE})"
EMBEDDED = 250_000  # bytes: larger image files are compressed again


def shades(parts: np.ndarray) -> str:
    """Returns the data URI of an image of numbers from 0 (dark blue) to 1 (yellow), [rows, columns]. NaN is transparent."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in CIVIDIS], np.float64)
    places = np.linspace(0, 1, len(stops))
    known = np.isfinite(parts)
    levels = np.where(known, parts, 0)
    channels = [np.interp(levels, places, stops[:, i]) for i in range(3)]
    return _uri(np.stack([*channels, known * 255], axis=-1))


def leanings(parts: np.ndarray) -> str:
    """Returns the data URI of an image of numbers from −1 (blue) over 0 (transparent) to 1 (orange), [rows, columns]."""
    colour = np.where(parts[..., None] < 0, FEWER, MORE)
    return _uri(np.concatenate([colour, np.abs(parts[..., None]) * 255], axis=-1))


def _uri(pixels: np.ndarray) -> str:
    stream = BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8), "RGBA").save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(stream.getvalue()).decode()}"


def embedded(file: Path) -> tuple[str, int, int] | None:
    """Returns (data URI, width, height) of a PNG file; None if the file is no image.

    A file of more than EMBEDDED bytes is compressed again, with some loss of quality.
    """
    try:
        with Image.open(file) as image:
            size, kind, content = image.size, "png", file.read_bytes()
            if len(content) > EMBEDDED:
                stream = BytesIO()
                image.save(stream, "WEBP", quality=75, method=2)
                kind, content = "webp", stream.getvalue()
    except OSError:
        return None
    return f"data:image/{kind};base64,{b64encode(content).decode()}", *size
