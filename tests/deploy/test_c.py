"""The C export: the compiled program computes the integers of the packed network, in every layer."""

import re
import shutil
import subprocess

import pytest
import torch
from helpers import with_any_norms
from torch import nn

from bnn_exp.bits.convolutions import to_rows
from bnn_exp.deploy import pack_network
from bnn_exp.deploy.c_constants import integer_scores
from bnn_exp.deploy.c_source import write_c
from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.integers import Average, CodeLayer, factors
from bnn_exp.deploy.mlp import LastLayer
from bnn_exp.models.vgg import VGG

STRICT = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion"]
MAIN = """
int main(void) {
    static uint8_t pixels[NETWORK_PIXELS];
    static int64_t scores[NETWORK_CLASSES];
    while (fread(pixels, 1, sizeof pixels, stdin) == sizeof pixels) network_classify(pixels, scores);
    return 0;
}
"""
ENCODINGS = ("boolean", "bipolar", "centred")

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
    from bnn_exp.bits import from_tiles
    from bnn_exp.bits.reference import unpacked

    weights = unpacked(from_tiles(last.tiles, last.outputs), torch.int64)
    weights = weights * (1 - last.zero) + last.zero
    inputs = x.to(torch.int64)[:, : weights.shape[1]] if last.pixels else unpacked(x, torch.int64)
    return inputs @ weights[:, : inputs.shape[1]].T


def pick(*choices):
    return choices[int(torch.randint(len(choices), ()))]


def random_vgg(seed: int) -> tuple[DeployedCNN, torch.Tensor]:
    """Returns a packed VGG of random shape. The BatchNorms of half of the seeds have the statistics of the images."""
    torch.manual_seed(seed)
    shape = (pick(1, 2, 3), pick(2, 3, 5, 9), pick(2, 4, 7, 10))
    channels = tuple(pick(1, 5, 8, 16, 33, 70) for _ in range(pick(1, 1, 2) if min(shape[1:]) > 3 else 1))
    mean, std = [pick(0, 33, 255) / 255 for _ in range(shape[0])], [pick(32, 64) / 255] * shape[0]
    network = VGG(shape, 10, channels, pick(1, 2), pick(1, 3, 5), ENCODINGS[seed % 3], mean=mean, std=std)
    images = torch.randint(0, 256, (9, *shape), dtype=torch.uint8)
    for norm in [*network.norms, network.last_norm] if seed % 2 else ():
        norm.momentum = 1.0
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    if seed % 2:
        network.train()(images)
    return pack_network(network.eval() if seed % 2 else with_any_norms(network)), images


def random_requantization(sums: torch.Tensor, reach: int, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns bias and multiplier M / 2^S of any sign, also 0, with (u + bias) · M < 2³¹, and < 2²⁴ below the greatest code.

    Most codes of `sums`, [n, outputs], lie between 0 and the greatest code.
    """
    outputs = sums.shape[1]
    sign = torch.randint(-4, 5, (outputs,)).sign()
    shift = torch.randint(0, 17 if levels == 255 else 21, (outputs,))
    slope = sign * levels / (1 + sums.std(0)) / 10 ** torch.empty(outputs).uniform_(-0.5, 1)
    bias = (sums.std(0) * torch.randn(outputs).abs() * sign - sums.mean(0)).round().clamp(-reach, reach)
    factor = (slope * 2.0**shift).round().clamp(-((2**30 - 1) // reach), (2**30 - 1) // reach).clamp(1 - 2**24, 2**24 - 1)
    return bias.to(torch.int32), factor / 2.0**shift


def random_cnn_of_codes(seed: int) -> tuple[DeployedCNN, torch.Tensor]:
    """Returns a CNN like those of model=bncvl: convolutions of codes, a mean, and dense layers."""
    torch.manual_seed(seed)
    encoding, levels, layers, peak = ENCODINGS[seed % 3], pick(15, 255), [], 255
    image_shape = (pick(1, 2, 3, 4), pick(1, 2, 5, 9), pick(1, 3, 6, 10))
    images = torch.randint(0, 256, (9, *image_shape), dtype=torch.uint8)
    h = images.permute(0, 2, 3, 1).contiguous()

    def add_code_layer(size: int, pool: int) -> torch.Tensor:
        outputs, channels = pick(1, 7, 16, 65, 130), h.shape[3]
        bits = torch.randint(0, 2, (outputs, size, size, channels), dtype=torch.uint8)
        padding = torch.zeros(channels, dtype=torch.uint8) if layers else torch.randint(0, 256, (channels,), dtype=torch.uint8)
        kernel = factors(bits, encoding).permute(0, 3, 1, 2)
        sums = nn.functional.conv2d(h.permute(0, 3, 1, 2).double(), kernel.double(), padding=size // 2)
        numbers = random_requantization(sums.transpose(0, 1).flatten(1).T.float(), peak * bits[0].numel(), levels)
        layers.append(CodeLayer(bits, encoding, pool, padding, *numbers, levels))
        return layers[-1](h)

    for _ in range(pick(1, 2, 3)):
        h = add_code_layer(pick(1, 3, 3, 5), pick(*range(1, min(3, *h.shape[1:3]) + 1)))
        peak = levels
    layers.append(Average(h.shape[3], torch.tensor(pick(1, 3, 255) / 2 ** pick(2, 5, 8)), levels))
    h = layers[-1](h)
    for _ in range(pick(0, 1, 2)):
        h = add_code_layer(1, 1)
    rows = to_rows(torch.randint(0, 2, (10, 1, 1, h.shape[3]), dtype=torch.uint8), codes=True)
    layers.append(LastLayer(rows, h.shape[3], encoding, "codes", with_any_norms(nn.BatchNorm1d(10))))
    return DeployedCNN(layers, image_shape), images


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 60))])
@pytest.mark.parametrize("random", [random_vgg, random_cnn_of_codes])
def test_every_integer_of_a_cnn_is_that_of_the_packed_network(random, seed, tmp_path):
    assert_equal_integers(*random(seed), tmp_path)
