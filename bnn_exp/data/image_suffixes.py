"""Suffixes."""

from functools import cache
from pathlib import Path

from PIL import Image

COMMON = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
NO_PICTURES = {
    "", ".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".gz", ".npz", ".npy", ".txt", ".md", ".zip", ".tar",
    ".pdf", ".ps", ".eps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf", ".gbr", ".fits", ".fit",
}  # fmt: skip
"""Suffixes of other files, and of some that Pillow knows, but that users do not mean as pictures."""

UNREAD = {".heic", ".heif", ".raw", ".cr2", ".nef", ".dng", ".arw", ".psd", ".svg"}  # pictures that Pillow does not read


@cache
def _is_known(suffix: str) -> bool:
    if suffix in COMMON or suffix in NO_PICTURES:  # Pillow's plug-ins take 0.1 s to load
        return suffix in COMMON
    Image.init()
    return Image.EXTENSION.get(suffix) in Image.OPEN


def is_image(file: Path) -> bool:
    """Returns whether a file is a picture that Pillow reads here, by its suffix."""
    return _is_known(file.suffix.lower())
