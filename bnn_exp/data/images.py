"""Encoded images to one array of pixels, by Pillow."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from bnn_exp.errors import UserError

LARGE = 16_000  # bytes an image, in the mean: from here on threads gain more than handing over costs


def decode_images(split, column: str, what: str, size: int | None, shape: tuple[int, ...] | None) -> np.ndarray:
    """All images of a split, in one array: uint8 [rows, channels, height, width].

    Args:
        what: the split, in an error's words.
        size: the side of the square to which the images are resized, in pixels; None: they have one size.
        shape: [channels, height, width] of the splits before it; None: one channel if no image of this one has colours.

    Raises:
        UserError: the first image that can't be decoded, or that has another size.
    """
    import datasets

    rows = split.cast_column(column, datasets.Image(decode=False)).select_columns(column).with_format("arrow")
    some = [table[column][0].as_py() for table in (rows[i : i + 1] for i in range(0, len(rows), len(rows) // 64 + 1))]
    grey = shape[0] == 1 if shape else all(map(_is_grey, some))
    pixels = partial(_pixels, mode="L" if grey else "RGB", size=size)
    images, first = None, 0
    with ThreadPoolExecutor() as pool:
        together = pool.map if sum(map(_encoded_size, some)) > LARGE * len(some) else map
        for table in rows.iter(256):
            batch = table[column].to_pylist()
            for i, (image, row) in enumerate(zip(together(pixels, batch), batch, strict=True), first):
                if isinstance(image, Exception):
                    file = f" ({row['path']})" if row["path"] else ""
                    raise UserError(f"{what} image {i}{file} can't be decoded ({image})")
                if images is None:
                    shape = shape or ((1, *image.shape) if grey else (3, *image.shape[:2]))
                    images = np.empty((len(rows), *shape), np.uint8)
                if image.shape[:2] != shape[1:]:
                    (h, w), (_, height, width) = image.shape[:2], shape
                    raise UserError(
                        f"{what} image {i} is {w}×{h} pixels, those before it are {width}×{height}\n"
                        "allowed: a dataset whose images all have one size, or dataset.size=N, to which they are resized"
                    )
                images[i] = image if grey else image.transpose(2, 0, 1)
            first += len(batch)
    return images


def _pixels(row: dict, mode: str, size: int | None) -> np.ndarray | Exception:
    """[height, width] or [height, width, 3] of one encoded image; or what is wrong with it, since a pool hands no row back."""
    try:
        return _upright(_open(row), mode, (size, size) if size else None)
    except Exception as error:  # Pillow's plug-ins raise what they like
        return error


def _upright(image: Image.Image, mode: str, size: tuple[int, int] | None) -> np.ndarray:
    """The pixels of an image as its EXIF data turn it, resized to `size` (width, height)."""
    if size:
        image.draft(mode, (2 * size[0], 2 * size[1]))  # a JPEG is decoded at a fraction of its size, but no less than this
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image = image.convert(mode)
    return np.asarray(image.resize(size) if size and image.size != size else image)


def read_image(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """One image file as uint8 of `shape` (channels, height, width), resized and made grey or coloured as that needs.

    Raises:
        UserError: it can't be decoded.
    """
    channels, height, width = shape
    try:
        pixels = _upright(Image.open(file), "L" if channels == 1 else "RGB", (width, height))
    except Exception as error:  # Pillow's plug-ins raise what they like
        raise UserError(f"{file}: not a readable image ({str(error).splitlines()[0]})") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _is_grey(row: dict) -> bool:
    try:
        return _open(row).getbands() in (("L",), ("1",), ("I",))
    except OSError:
        return True  # the loop that decodes says which image is broken


def _encoded_size(row: dict) -> int:
    if row["bytes"] is not None:
        return len(row["bytes"])
    return file.stat().st_size if (file := Path(row["path"])).is_file() else 0


def _open(row: dict) -> Image.Image:
    return Image.open(BytesIO(row["bytes"]) if row["bytes"] is not None else Path(row["path"]))
