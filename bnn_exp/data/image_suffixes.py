"""Decides by the suffix of a file if the file is an image that Pillow reads."""

from functools import cache
from pathlib import Path

from PIL import Image

COMMON = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
NO_PICTURES = {
    "", ".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".gz", ".npz", ".npy", ".txt", ".md", ".zip", ".tar",
    ".pdf", ".ps", ".eps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf", ".gbr", ".fits", ".fit",
}  # fmt: skip
"""Suffixes of files that users do not mean as images, although Pillow reads some of these formats."""

UNREAD = {".heic", ".heif", ".raw", ".cr2", ".nef", ".dng", ".arw", ".psd", ".svg"}  # image formats that Pillow does not read


@cache
def _is_known(suffix: str) -> bool:
    if suffix in COMMON or suffix in NO_PICTURES:  # a known suffix saves 0.1 s, which Pillow's plug-ins take to load
        return suffix in COMMON
    Image.init()
    return Image.EXTENSION.get(suffix) in Image.OPEN


def is_image(file: Path) -> bool:
    """Returns True if Pillow reads files with this suffix as images."""
    return _is_known(file.suffix.lower())
