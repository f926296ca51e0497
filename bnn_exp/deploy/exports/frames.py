"""Makes the frames of test vectors, which have sizes that a camera might have, and tells how Pillow resizes."""

from functools import cache

import numpy as np
from PIL import Image

SIDE = 640  # no frame has a longer side, unless the network's own pixels have: the C function has a limit


def frames_of(images: np.ndarray) -> list[np.ndarray]:
    """Returns four frames, uint8 [height, width, 1 or 3], from `images`, uint8 [n, channels, height, width], n ≥ 1.

    The frames are: the first image as it is; the last image in another size and in colours; a tall grey frame and a wide frame
    in colours, both of random pixels, which are equal on every machine.
    """
    _, _, height, width = images.shape
    first, last = (image.transpose(1, 2, 0) for image in (images[0], images[-1]))
    larger = Image.fromarray(np.broadcast_to(last, (height, width, 3)).copy()).resize(
        _limited(3 * width // 2 + 1, 9 * height // 8 + 2)
    )
    tinted = np.asarray(larger, np.uint16) * np.array([255, 224, 160], np.uint16) // 255
    tall, wide = _limited(width // 2 + 1, 3 * height + 1), _limited(2 * width + 3, height // 2 + 2)
    return [first.copy(), tinted.astype(np.uint8), _random(*tall, 1), _random(*wide, 3)]


def _limited(width: int, height: int) -> tuple[int, int]:
    return min(width, SIDE), min(height, SIDE)


def _random(width: int, height: int, channels: int) -> np.ndarray:
    drawn = np.random.RandomState(width + 1000 * height).bytes(width * height * channels)
    return np.frombuffer(drawn, np.uint8).reshape(height, width, channels)


@cache
def columns_first() -> int:
    """Returns a number for the images whose columns the installed Pillow resizes before their lines, if they lose lines.

    2: images that lose more than twice as many lines as columns (from Pillow 13 on). 100: images more than 100 times as tall as
    wide. 0: none (Pillow 10.0). All other images are resized lines first. The orders differ by rounding.
    """
    for factor, width, height in ((2, 10, 100), (100, 3, 310)):
        tall = Image.fromarray(_random(width, height, 1)[..., 0])
        if tall.resize((5, 7)).tobytes() != tall.resize((5, height)).resize((5, 7)).tobytes():
            return factor
    return 0
