"""The C export: the compiled program computes the integers of the packed network, in every layer."""

import re
import shutil
import subprocess

import pytest
import torch
from cnns import random_bncvl, random_pictures, random_vgg
from torch import nn

from bnn_exp.bits import from_tiles
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy import pack_network
from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.exports.c.constants import integer_scores
from bnn_exp.deploy.exports.c.layers import written
from bnn_exp.deploy.exports.c.source import write_c
from bnn_exp.deploy.integers import CodeLayer, StepLayer
from bnn_exp.deploy.mlp import LastLayer
from bnn_exp.errors import UserError
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.vgg import VGG
from bnn_exp.nn.norm import affine_norm

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


def dumped(network, images: torch.Tensor, sizes: list[int], folder) -> list[torch.Tensor]:
    """Returns what each layer of the compiled C writes, uint8 [images, size]."""
    source, header, *_ = write_c(network, tuple(images.shape[1:]), tuple("0123456789"[: sizes[-1] // 8]))
    call = re.compile(r"    (?!channels)\w+\(&layer_(\d+), \w+, (a|b|\(uint8_t \*\)scores)\);\n(?:    invert\(.*\n)?")
    source, count = call.subn(lambda c: f"{c[0]}    fwrite({c[2]}, 1, {sizes[int(c[1]) - 1]}, stdout);\n", source)
    assert count == len(sizes)
    (folder / "network.c").write_text("#include <stdio.h>\n" + source + MAIN)
    (folder / "network.h").write_text(header)
    subprocess.run(["cc", *STRICT, "network.c", "-o", "network"], cwd=folder, check=True)
    out = subprocess.run([folder / "network"], input=images.numpy().tobytes(), capture_output=True, check=True).stdout
    return list(torch.frombuffer(bytearray(out), dtype=torch.uint8).view(len(images), -1).split(sizes, 1))


def assert_equal_integers(network: DeployedCNN, images: torch.Tensor, folder) -> None:
    """Compares every byte of every layer, and all scores."""
    h, expected = images.permute(0, 2, 3, 1).contiguous(), []
    *layers, last = network.layers
    for layer in layers:
        h = layer(h)
        expected.append(h.flatten(1))
    *found, scores = dumped(network, images, [*(rows.shape[1] for rows in expected), 8 * last.outputs], folder)
    for of_c, of_python in zip(found, expected, strict=True):
        assert torch.equal(of_c, of_python)
    scales, offsets = map(torch.from_numpy, integer_scores(last))
    assert torch.equal(scores.contiguous().view(torch.int64), scales * exact_sums(last, expected[-1]) + offsets)


def exact_sums(last: LastLayer, x: torch.Tensor) -> torch.Tensor:
    """Returns the sums u of a last layer, int64 [batch, outputs], of codes or packed bits x."""
    weights = unpacked(from_tiles(last.tiles, last.outputs), torch.int64)
    weights = weights * (1 - last.zero) + last.zero
    inputs = x.to(torch.int64)[:, : weights.shape[1]] if last.pixels else unpacked(x, torch.int64)
    return inputs @ weights[:, : inputs.shape[1]].T


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))])
@pytest.mark.parametrize("random", [random_vgg, random_bncvl])
def test_every_integer_of_a_cnn_is_that_of_the_packed_network(random, seed, tmp_path):
    network = random(seed)
    assert_equal_integers(pack_network(network), random_pictures(network), tmp_path)


@pytest.mark.parametrize("shape", [(1, 1, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in ((3, 2, 1), (1, 2, 3)))])
def test_a_picture_smaller_than_the_kernel(shape, tmp_path):
    bits = random_vgg(0, image_shape=(3, 2, 2), kernel_size=5, channels=[9], convolutions=3)
    codes = random_bncvl(0, image_shape=shape, kernel_size=5, channels=[9, 70], pool=1, convolutions=2)
    for network in (bits, codes):
        assert_equal_integers(pack_network(network), random_pictures(network), tmp_path)


@pytest.mark.parametrize("encoding", ["bipolar", pytest.param("boolean", marks=pytest.mark.slow)])
def test_the_greatest_sums_do_not_overflow(encoding, tmp_path):
    """All weights and all inputs are the greatest: codes of 255 in one network, bits of 1 in another."""
    ones = torch.ones(9, 3, 3, 40, dtype=torch.uint8)
    padding, bias = torch.full((40,), 255, dtype=torch.uint8), torch.zeros(9, dtype=torch.int32)
    layers = [CodeLayer(ones, encoding, 1, padding, bias, torch.full((9,), 2.0**-9), 255)]
    layers.append(LastLayer(torch.full((2, 18 * 9 // 8 + 1), 0), 18 * 9, encoding, "codes", nn.BatchNorm1d(2).eval()))
    white = torch.full((2, 40, 3, 6), 255, dtype=torch.uint8)
    assert_equal_integers(DeployedCNN(layers, (40, 3, 6)), white, tmp_path)
    network = random_vgg(0, image_shape=(1, 6, 6), kernel_size=3, channels=[33], convolutions=3, encoding=encoding)
    for layer in (*network.convolutions, network.last):
        layer.weight.data.fill_(1)
    for norm in network.norms:
        norm.running_mean.fill_(100)
        norm.running_var.fill_(1)
        norm.weight.data.fill_(1)
        norm.bias.data.fill_(0)
    network.mean.fill_(0)
    network.norms[2].running_mean.fill_(9 * 33 - 0.5)
    assert_equal_integers(pack_network(network), white[:, :1, :1, :1].expand(2, 1, 6, 6), tmp_path)


@pytest.mark.parametrize("kind", [VGG, BNCVLNet])
def test_constants_take_their_bits_and_what_is_real(kind):
    """Not more than 5% beyond: rows of weights end with a word, and each layer has a struct."""
    settings = {"channels": (16, 32, 64), "mean": [33 / 255], "std": [64 / 255]}
    codes = {"activation_bits": 8} if kind is BNCVLNet else {}
    network = pack_network(kind((1, 28, 28), 10, **settings, **codes).eval())
    *layers, last = network.layers
    bits = last.inputs * last.outputs + sum(layer.bits().numel() for layer in layers if hasattr(layer, "bits"))
    real = 10 * (8 + 8 + 6)  # a scale, a shift and a name for each class
    for layer in layers:  # a threshold; or a whole number, a factor and its shift
        real += 4 * layer.outputs if layer.gives == "bits" else 9 * getattr(layer, "outputs", 1)
    flash = write_c(network, (1, 28, 28), tuple("0123456789")).flash
    assert bits / 8 + real < flash < 1.05 * (bits / 8 + real)


def test_what_the_c_code_can_not_count_is_refused():
    """Totals of bits have 16 bits, and the fields of a layer 8 or 16."""
    norm = affine_norm(nn.BatchNorm2d, torch.ones(1), torch.zeros(1))
    bits, none = torch.ones(1, 3, 3, 3641, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    step = StepLayer(bits, "boolean", 1, None, norm, 1.0, torch.zeros(1, 1, 1))
    with pytest.raises(UserError, match="a convolution adds up 32,769 bits\nallowed: up to 32,767"):
        written(step, (1, 1, 3641), False)
    pooled = CodeLayer(bits[:, :1, :1, :1], "boolean", 256, none, none.int(), torch.ones(1), 255)
    with pytest.raises(UserError, match="the pool of a layer is 256\nallowed: up to 255"):
        written(pooled, (256, 256, 1), False)


ON_ARM = [pytest.param(f"arm-none-eabi-gcc -mcpu={name}", marks=pytest.mark.slow) for name in ("cortex-m0plus", "cortex-m4")]


@pytest.mark.parametrize("compiler", ["gcc", "clang", *ON_ARM])
def test_no_compiler_warns(compiler, tmp_path):
    command = compiler.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}")
    for network in (random_vgg(1), random_bncvl(1)):
        source, header, *_ = write_c(pack_network(network), network.image_shape, tuple("0123456789"))
        (tmp_path / "network.c").write_text(source)
        (tmp_path / "network.h").write_text(header)
        subprocess.run([*command, *STRICT, "-DNETWORK_MAIN", "-c", "network.c"], cwd=tmp_path, check=True)
