"""The C export: the compiled program computes the integers of the packed network, in every layer."""

import re
import shutil
import subprocess

import pytest
import torch
from cnns import random_bncvl, random_pictures, random_vgg

from bnn_exp.bits import from_tiles
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy import pack_network
from bnn_exp.deploy.c_constants import integer_scores
from bnn_exp.deploy.c_source import write_c
from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.mlp import LastLayer

STRICT = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion"]
MAIN = """
int main(void) {
    static uint8_t pixels[NETWORK_PIXELS];
    static int64_t scores[NETWORK_CLASSES];
    while (fread(pixels, 1, sizeof pixels, stdin) == sizeof pixels) network_classify(pixels, scores);
    return 0;
}
"""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def dumped(network, images: torch.Tensor, folder) -> list[torch.Tensor]:
    """Returns what each layer of the compiled C writes: uint8 [images, bytes]; the last one int64 [images, classes]."""
    source, header, *_ = write_c(network, tuple(images.shape[1:]), tuple("0123456789"))
    call = re.compile(r"(    (?!channels)\w+\(&layer_(\d+), \w+, (a|b|\(uint8_t \*\)scores)\);\n(?:    invert\(.*\n)?)")
    source, count = call.subn(r"\1    fwrite(\3, 1, (size_t)layer_\2.result_size, stdout);\n", source)
    assert count == len(network.layers)
    (folder / "network.c").write_text("#include <stdio.h>\n" + source + MAIN)
    (folder / "network.h").write_text(header)
    subprocess.run(["cc", *STRICT, "network.c", "-o", "network"], cwd=folder, check=True)
    out = subprocess.run([folder / "network"], input=images.numpy().tobytes(), capture_output=True, check=True).stdout
    sizes = [int(size) for size in re.findall(r"\.result_size = (\d+)", source)]
    rows = torch.frombuffer(bytearray(out), dtype=torch.uint8).view(len(images), -1).split(sizes, 1)
    return [*rows[:-1], rows[-1].contiguous().view(torch.int64)]


def assert_equal_integers(network: DeployedCNN, images: torch.Tensor, folder) -> None:
    """Compares every byte of every layer, and all scores."""
    h = images.permute(0, 2, 3, 1).contiguous()
    *found, scores = dumped(network, images, folder)
    for layer, of_c in zip(network.layers[:-1], found, strict=True):
        h = layer(h)
        assert torch.equal(of_c, h.flatten(1))
    last = network.layers[-1]
    sums = exact_sums(last, h.flatten(1))
    a, b = (torch.from_numpy(numbers) for numbers in integer_scores(last))
    assert torch.equal(scores, a * sums + b)


def exact_sums(last: LastLayer, x: torch.Tensor) -> torch.Tensor:
    """Returns the sums u of a last layer, int64 [batch, outputs], of codes or packed bits x."""
    weights = unpacked(from_tiles(last.tiles, last.outputs), torch.int64)
    weights = weights * (1 - last.zero) + last.zero
    inputs = x.to(torch.int64)[:, : weights.shape[1]] if last.pixels else unpacked(x, torch.int64)
    return inputs @ weights[:, : inputs.shape[1]].T


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 40))])
@pytest.mark.parametrize("random", [random_vgg, random_bncvl])
def test_every_integer_of_a_cnn_is_that_of_the_packed_network(random, seed, tmp_path):
    network = random(seed)
    assert_equal_integers(pack_network(network), random_pictures(network), tmp_path)


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 2, 1), (1, 2, 3)])
def test_a_picture_smaller_than_the_kernel(shape, tmp_path):
    bits = random_vgg(0, image_shape=(3, 2, 2), kernel_size=5, channels=[9], convolutions=3)
    codes = random_bncvl(0, image_shape=shape, kernel_size=5, channels=[9, 70], pool=1, convolutions=2)
    for network in (bits, codes):
        assert_equal_integers(pack_network(network), random_pictures(network), tmp_path)
