"""Writes a small dataset of colour images of many sizes in three classes: `python scripts/photos.py FOLDER`.

Each image shows a disc, a square or a triangle on a darker ground, under noise. Colours, place, size and angle are random, so
neither the mean colour nor a single pixel reveals the class. A quarter of the images are test images. The seed is fixed, so
the images are always the same.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# the number of corners, and the angle of the first corner in radians
CLASSES = {"disc": None, "square": (4, np.pi / 4), "triangle": (3, -np.pi / 2)}
SIDES = (40, 160)  # least and greatest width and height of an image, in pixels
LIGHTER = 60  # least difference of shape and ground, in the mean of the channels
NOISE = 50  # standard deviation of the noise on each channel


def picture(kind: str, draw: np.random.Generator) -> Image.Image:
    """Draws one RGB image of the class `kind`."""
    width, height = (int(side) for side in draw.integers(*SIDES, 2, endpoint=True))
    ground, ink = _colours(draw)
    image = Image.new("RGB", (width, height), ground)
    centre = np.array([width, height]) * draw.uniform(0.45, 0.55, 2)
    radius, turn = draw.uniform(0.25, 0.45) * min(width, height), draw.uniform(-0.3, 0.3)
    canvas = ImageDraw.Draw(image)
    if CLASSES[kind] is None:
        canvas.ellipse((*(centre - radius), *(centre + radius)), ink)
    else:
        corners, first = CLASSES[kind]
        angles = first + turn + 2 * np.pi * np.arange(corners) / corners
        canvas.polygon([tuple(centre + radius * np.array([np.cos(a), np.sin(a)])) for a in angles], ink)
    noisy = np.asarray(image) + draw.normal(0, NOISE, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _colours(draw: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    while True:
        ground, ink = draw.integers(0, 256, (2, 3)).tolist()
        if sum(ink) - sum(ground) > 3 * LIGHTER:
            return tuple(ground), tuple(ink)


def write(folder: Path, train: int = 450, test: int = 150, seed: int = 0) -> Path:
    """Writes train/CLASS/*.png and test/CLASS/*.png, and returns the folder.

    Args:
        train: the number of train images of all classes together.
        test: the number of test images of all classes together.
    """
    draw = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for i, kind in zip(range(count), list(CLASSES) * count, strict=False):
            place = folder / split / kind
            place.mkdir(parents=True, exist_ok=True)
            picture(kind, draw).save(place / f"{i:03}.png")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=450, help="number of train images")
    parser.add_argument("--test", type=int, default=150, help="number of test images")
    asked = parser.parse_args()
    write(asked.folder, asked.train, asked.test)
