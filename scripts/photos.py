"""Writes a small set of colour pictures of many sizes in three classes, always the same: `python scripts/photos.py FOLDER`.

Each picture shows a disc, a square or a triangle of any colour, place, size and angle on a noisy ground of any other colour.
So neither the mean colour nor a single pixel tells the classes apart. A third of the pictures are test pictures.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("disc", "square", "triangle")
CORNERS = {"square": 4, "triangle": 3}
SMALLEST, LARGEST = 40, 160  # sides of a picture, in pixels


def picture(kind: str, draw: np.random.Generator) -> Image.Image:
    """Returns one picture of a class, RGB, with sides of SMALLEST to LARGEST pixels."""
    width, height = (int(side) for side in draw.integers(SMALLEST, LARGEST + 1, 2))
    ground, ink = draw.integers(0, 256, (2, 3))
    while np.abs(ground - ink).sum() < 150:
        ink = draw.integers(0, 256, 3)
    image = Image.new("RGB", (width, height), tuple(int(value) for value in ground))
    radius = draw.uniform(0.25, 0.4) * min(width, height)
    x, y = draw.uniform(radius, width - radius), draw.uniform(radius, height - radius)
    _shape(ImageDraw.Draw(image), kind, (x, y), radius, draw.uniform(0, 2 * np.pi), tuple(int(value) for value in ink))
    noisy = np.asarray(image) + draw.normal(0, 20, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _shape(canvas: ImageDraw.ImageDraw, kind: str, centre: tuple[float, float], radius: float, turn: float, ink) -> None:
    if kind == "disc":
        canvas.circle(centre, radius, ink)
        return
    angles = turn + 2 * np.pi * np.arange(CORNERS[kind]) / CORNERS[kind]
    canvas.polygon([(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in angles], ink)


def write(folder: Path, train: int = 400, test: int = 200, seed: int = 0) -> Path:
    """Writes train/CLASS/*.png and test/CLASS/*.png, so many pictures in all, and returns the folder."""
    draw = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for i in range(count):
            kind = CLASSES[i % len(CLASSES)]
            place = folder / split / kind
            place.mkdir(parents=True, exist_ok=True)
            picture(kind, draw).save(place / f"{i:03}.png")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
