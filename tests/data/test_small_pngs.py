"""Small PNGs that are decoded many at a time have Pillow's pixels; every other image is left to Pillow."""

import struct
import zlib
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from bnn_exp.data import small_pngs

DRAW = np.random.default_rng(0)


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(filters: list[int], width: int, channels: int, pieces: int = 1) -> bytes:
    """Returns a PNG whose rows have these filters and random filtered bytes: any bytes are an image."""
    rows = [bytes([kind]) + DRAW.integers(0, 256, width * channels, np.uint8).tobytes() for kind in filters]
    header = struct.pack(">IIBBBBB", width, len(rows), 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    data = zlib.compress(b"".join(rows))
    cuts = [len(data) * i // pieces for i in range(pieces + 1)]
    parts = b"".join(chunk(b"IDAT", data[i:j]) for i, j in pairwise(cuts))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + parts + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GREY = Image.fromarray(DRAW.integers(0, 256, (6, 5), np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_all_filters_give_the_pixels_of_pillow(channels):
    pictures = [png(DRAW.integers(0, 5, 9).tolist(), 7, channels, pieces) for pieces in (1, 1, 2, 3) for _ in range(20)]
    found = small_pngs.decoded(pictures, channels)
    assert all(np.array_equal(pixels, pixels_of(picture)) for pixels, picture in zip(found, pictures, strict=True))


def test_pngs_that_pillow_saves_are_decoded():
    images = [Image.fromarray((DRAW.random((28, 28)) ** 2 * np.arange(28) * 9).astype(np.uint8)) for _ in range(10)]
    found = small_pngs.decoded([saved(image) for image in images], 1)
    assert all(np.array_equal(pixels, image) for pixels, image in zip(found, images, strict=True))


def test_only_the_size_of_the_first_image_is_decoded():
    found = small_pngs.decoded([None, png([0, 4], 3, 1), png([0], 3, 1), png([1, 2], 3, 1)], 1)
    assert [pixels is not None for pixels in found] == [False, True, False, True]


def _info() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b")
    return info


PLAIN = png([0, 1, 2, 3, 4], 5, 1)
OTHERS = {
    "colours": png([0], 5, 3),
    "16 bits": saved(Image.fromarray(DRAW.integers(0, 2**16, (6, 5), np.uint16))),
    "1 bit": saved(GREY.convert("1")),
    "a palette": saved(GREY.convert("P")),
    "transparency": saved(GREY.convert("LA")),
    "a transparent value": saved(GREY, transparency=0),
    "text": saved(GREY, pnginfo=_info()),
    "another format": saved(GREY, "BMP"),
    "a file": __file__,
    "values": np.asarray(GREY),
    "nothing": None,
    "no bytes": b"",
    "cut": PLAIN[:-5],
    "longer": PLAIN + b"\0",
    "no pixels": png([], 5, 1),
    "a wide image": png([0], small_pngs.WIDEST + 1, 1),
    "an unknown filter": png([5], 5, 1),
    "a changed byte": PLAIN[:45] + bytes([PLAIN[45] ^ 1]) + PLAIN[46:],
    "too few rows": PLAIN.replace(PLAIN[8:33], chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 8, 0, 0, 0, 0))),
    "interlacing": PLAIN.replace(PLAIN[8:33], chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 8, 0, 0, 0, 1))),
    "no IDAT": PLAIN[:33] + chunk(b"IEND", b""),
}


@pytest.mark.parametrize("other", OTHERS)
def test_any_other_data_are_left_to_pillow(other):
    found = small_pngs.decoded([OTHERS[other], PLAIN], 1)
    assert found[0] is None and np.array_equal(found[1], pixels_of(PLAIN))
