"""Decodes many small PNGs at once. Pillow takes 40 µs for each image, however small; MNIST has 70,000.

Only plain PNGs are decoded here: 8 bits, grey or RGB, not interlaced, with pixels and nothing else (no palette, transparency,
gamma or EXIF). Pillow decodes all others, and says what is wrong with a damaged file. The pixels are those of Pillow.

Source: the PNG specification, W3C, sections 5 (chunks) and 9 (filters).
"""

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from bnn_exp.data.images import Encoded

WIDEST = 256  # bytes of a row: filters take a step of Python for each byte, so Pillow is faster for wide images
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colour type, compression, filters, interlacing
_COLOUR_TYPES = {1: 0, 3: 2}  # channels: the colour type of PNG


def decoded(pictures: Sequence[Encoded], channels: int) -> list[np.ndarray | None]:
    """Returns the pixels of each plain PNG that has the size of the first one; None in the place of every other image.

    Args:
        channels: 1 or 3; a plain PNG of another kind counts as another image.

    Returns:
        uint8 [height, width] for 1 channel, [height, width, 3] for 3.
    """
    found = [_lines(picture, channels) if isinstance(picture, bytes) else None for picture in pictures]
    shape = next((lines.shape for lines in found if lines is not None), None)
    alike = [i for i, lines in enumerate(found) if lines is not None and lines.shape == shape]
    result: list[np.ndarray | None] = [None] * len(pictures)
    if alike:
        pixels = _unfiltered(np.stack([found[i] for i in alike]), channels)
        for i, image in zip(alike, pixels, strict=True):
            result[i] = image if channels == 1 else image.reshape(len(image), -1, channels)
    return result


def _lines(png: bytes, channels: int) -> np.ndarray | None:
    """Returns the filtered rows of a plain PNG: uint8 [height, 1 + bytes of a row], the kind of the filter first. None for
    other data."""
    if (parts := _parts(png)) is None or len(parts[0]) != _HEADER.size:
        return None
    width, height, *kind = _HEADER.unpack(parts[0])
    row = width * channels
    if kind != [8, _COLOUR_TYPES[channels], 0, 0, 0] or not 0 < row <= WIDEST:
        return None
    try:
        content = zlib.decompress(parts[1])
    except zlib.error:
        return None
    if len(content) != height * (1 + row) or max(content[:: 1 + row], default=5) >= len(_FILTERS):
        return None
    return np.frombuffer(content, np.uint8).reshape(height, 1 + row)


def _parts(png: bytes) -> tuple[bytes, bytes] | None:
    """Returns the header and the compressed pixels of a PNG that holds nothing else and is not damaged; None for other data."""
    if not png.startswith(_SIGNATURE):
        return None
    place, kinds, contents = len(_SIGNATURE), [], []
    while place + 12 <= len(png):
        size, kind = _CHUNK.unpack_from(png, place)
        content, end = png[place + 8 : place + 8 + size], place + 12 + size
        if png[end - 4 : end] != zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big"):
            return None
        kinds.append(kind)
        contents.append(content)
        place = end
    data = kinds[1:-1]
    if place != len(png) or not data or kinds != [b"IHDR", *[b"IDAT"] * len(data), b"IEND"]:
        return None
    return contents[0], b"".join(contents[1:-1])


def _unfiltered(lines: np.ndarray, channels: int) -> np.ndarray:
    """Returns the pixels, uint8 [images, height, bytes of a row], of filtered rows as `_lines` returns them, stacked."""
    kinds = lines[:, :, 0].T
    values = np.ascontiguousarray(lines[:, :, 1:].transpose(1, 2, 0))  # [height, bytes of a row, images]
    above = np.zeros(values.shape[1:], np.uint8)
    for row, kind in zip(values, kinds, strict=True):
        for name in np.unique(kind[kind > 0]):
            which = (kind == name).nonzero()[0]
            row[:, which] = _FILTERS[name](row[:, which], above[:, which], channels)
        above = row
    return values.transpose(2, 0, 1)


def _sub(row: np.ndarray, above: np.ndarray, channels: int) -> np.ndarray:
    pixels = row.reshape(-1, channels, row.shape[1])
    return pixels.cumsum(0, dtype=np.uint8).reshape(row.shape)


def _up(row: np.ndarray, above: np.ndarray, channels: int) -> np.ndarray:
    return row + above


def _average(row: np.ndarray, above: np.ndarray, channels: int) -> np.ndarray:
    left = np.zeros((channels, row.shape[1]), np.uint8)
    result = np.concatenate([left, row])
    for x, up in enumerate(above):
        result[x + channels] += ((result[x].astype(np.uint16) + up) // 2).astype(np.uint8)
    return result[channels:]


def _paeth(row: np.ndarray, above: np.ndarray, channels: int) -> np.ndarray:
    edge = np.zeros((channels, row.shape[1]), np.uint8)
    result, ups = np.concatenate([edge, row]), np.concatenate([edge, above]).astype(np.int16)
    for x in range(len(row)):
        a, b, c = result[x].astype(np.int16), ups[x + channels], ups[x]  # left, above, above and left
        to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        nearest = np.where((to_a <= to_b) & (to_a <= to_c), a, np.where(to_b <= to_c, b, c))
        result[x + channels] += nearest.astype(np.uint8)
    return result[channels:]


_FILTERS: tuple[Callable[[np.ndarray, np.ndarray, int], np.ndarray], ...] = (lambda row, *_: row, _sub, _up, _average, _paeth)
