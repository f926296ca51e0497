"""The pixels of every export are those of training: in C for any frame, in Python for any image."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from bnn_exp.data.images import Pixels
from bnn_exp.deploy.preprocessing import Preprocessing

STRICT = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]
FRAMES = [(1, 1), (1, 2), (2, 1), (640, 480), (1, 640), (640, 1), (3, 640), (640, 3), (11, 200), (31, 7)]


def facts_of(shape, fit="squash", background="#c0ffee"):
    return Preprocessing(shape, ("a", "b"), Pixels(fit, background))


def sources(folder, facts):
    """Writes network.h, without a network, and network_prepare.c to the folder."""
    text = "#include <stdint.h>\n#define NETWORK_PIXELS (NETWORK_CHANNELS * NETWORK_HEIGHT * NETWORK_WIDTH)\n"
    (folder / "network.h").write_text(text + facts.c_header())
    (folder / "network_prepare.c").write_text(facts.c_source())


def compiled(folder, facts, compiler="cc"):
    """Returns network_prepare as a Python function: frame, uint8 [height, width, channels] → pixels."""
    sources(folder, facts)
    subprocess.run([compiler, *STRICT, "-fPIC", "-shared", "network_prepare.c", "-o", "library.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "library.so"))

    def prepare(frame):
        pixels, (height, width, channels) = np.full(facts.shape, 77, np.uint8), frame.shape
        places = [ctypes.c_void_p(array.ctypes.data) for array in (frame, pixels)]
        return library.network_prepare(places[0], width, height, channels, places[1]) or pixels

    return prepare


def frames(seed, count, longest):
    """Yields frames of random pixels: noise, or smooth with full contrast, which the filter overshoots."""
    random = np.random.default_rng(seed)
    sizes = [*FRAMES, *((int(w), int(h)) for w, h in np.exp(random.uniform(0, np.log(longest), (count, 2))).astype(int))]
    for number, (width, height) in enumerate(sizes):
        channels = (1, 3)[number % 2] if number >= len(FRAMES) else (1, 3)[seed % 2]
        frame = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        yield frame if number % 3 else np.where(frame > 127, np.uint8(255), np.uint8(0))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 9, 20), (3, 30, 12), (3, 1, 1)])
def test_the_c_code_makes_the_pixels_of_training(shape, fit, tmp_path):
    facts = facts_of(shape, fit)
    prepare = compiled(tmp_path, facts)
    for seed in range(2):
        for frame in frames(seed, 12, 300):
            np.testing.assert_array_equal(prepare(frame), facts.prepare(frame), str(frame.shape))
