"""Triton's kernels of packed CNNs against the definitions. Without a GPU, Triton's interpreter runs the kernels."""

import pytest
import torch
from cnns import random_bncvl, random_vgg
from helpers import compiled, on_both, rest_slow, where

from bnn_exp.bits import convolutions as definitions
from bnn_exp.bits import laid_out, pack, to_tiles
from bnn_exp.bits.convolutions import border_classes
from bnn_exp.deploy.load import pack_network
from bnn_exp.nn import operators

pytest.importorskip("triton")
from bnn_exp.bits.cuda import convolutions

pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs")], where()
# (batch, height, width, channels, size, outputs, pool, value of a bit 0), in sizes that are no multiple of anything
SHAPES = [
    (2, 6, 5, 17, 3, 10, 2, -1),
    (2, 4, 5, 3, 3, 34, 1, 0),
    (3, 1, 1, 37, 1, 9, 1, -1),
    (1, 7, 7, 5, 5, 12, 3, -1),
    (1, 2, 3, 20, 5, 1, 1, 0),  # a kernel larger than the picture
    (0, 4, 4, 8, 3, 8, 2, -1),
    (2, 8, 8, 64, 3, 64, 2, -1),
    (1, 11, 6, 4, 3, 8, 5, -1),  # a window of more positions than the smallest tile has
]


class Layer:
    """A convolution with random weights, and random inputs: codes, and packed bits."""

    def __init__(self, batch, height, width, channels, size, outputs, pool, zero):
        self.size, self.outputs, self.zero, self.pool, self.channels = size, outputs, zero, pool, channels
        weights = torch.randint(0, 2, (outputs, size, size, channels), dtype=torch.uint8)
        self.factors = weights.long() * (1 - zero) + zero
        self.tiles = {codes: to_tiles(definitions.to_rows(weights, codes)) for codes in (True, False)}
        self.codes = torch.randint(0, 256, (batch, height, width, channels), dtype=torch.uint8)
        self.bits = torch.randint(0, 2, (batch, height, width, channels), dtype=torch.uint8)
        packed = pack(self.bits.flatten(0, 2)) if batch else torch.zeros(0, dtype=torch.uint8)
        self.packed = packed.view(batch, height, width, -(-channels // 8))
        self.padding = torch.randint(0, 256, (channels,), dtype=torch.uint8)

    def sums(self, x, padding):
        """Returns the sums Σ x·w, int64 [batch, height, width, outputs], by products of integers."""
        half, (batch, height, width, _) = self.size // 2, x.shape
        around = padding.long().expand(batch, height + 2 * half, width + 2 * half, -1).clone()
        around[:, half : half + height, half : half + width] = x
        windows = around.unfold(1, self.size, 1).unfold(2, self.size, 1).permute(0, 1, 2, 4, 5, 3)
        return windows.flatten(3) @ self.factors.flatten(1).T


def pooled(x, pool):
    """Returns x, [batch, height, width, outputs], max-pooled; positions that fill no window do not count."""
    return x.unfold(1, pool, pool).unfold(2, pool, pool).flatten(4).amax(4)


def run(name, x, *arguments):
    """Returns the result of the kernels of an operator, on the CPU. Tiles are the second argument of a convolution."""
    given = [a.to(WHERE) if isinstance(a, torch.Tensor) else a for a in (x, *arguments)]
    if name != "average_codes":
        given[1] = laid_out(given[1])
    return getattr(convolutions, name)(*given).cpu()


@pytest.mark.parametrize("shape", rest_slow(SHAPES, 4))
def test_codes_of_codes(shape):
    layer = Layer(*shape)
    sums = layer.sums(layer.codes, layer.padding)
    bias = torch.randint(-999, 999, (layer.outputs,), dtype=torch.int32)
    multiplier = torch.randint(-3000, 3000, (layer.outputs,)) / 2**20
    multiplier[0] = 1 / 2  # halves: rounding to the even number decides
    found = run(
        "codes_of_codes",
        layer.codes,
        layer.tiles[True],
        layer.padding,
        layer.size,
        layer.zero,
        bias,
        multiplier,
        200,
        layer.pool,
    )
    expected = ((sums + bias).double() * multiplier.double()).round().clamp(0, 200)
    assert torch.equal(found.double(), pooled(expected, layer.pool))


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("shape", rest_slow(SHAPES, 4))
def test_steps_are_sums_against_thresholds(shape, codes):
    layer = Layer(*shape)
    x = layer.codes if codes else layer.bits
    sums = layer.sums(x, layer.padding if codes else torch.zeros(layer.channels))
    # The thresholds are sums that occur, so that equality decides; the first output never reaches its threshold.
    classes, middle = (
        1 if codes else layer.size,
        sums.flatten(0, 2)[:1].expand(1, -1) if len(sums) else torch.zeros(1, layer.outputs),
    )
    thresholds = (middle + torch.randint(-3, 4, (classes, classes, layer.outputs))).to(torch.int32)
    thresholds[..., 0] = torch.iinfo(torch.int32).max
    inverted = torch.randint(0, 2, (layer.outputs,), dtype=torch.uint8)
    filled = definitions.thresholds_of(thresholds, len(layer.tiles[codes]))
    bytes_of = pack(torch.nn.functional.pad(inverted, (0, filled.shape[2] - layer.outputs))[None])[0]
    rows, columns = (border_classes(length, classes) for length in sums.shape[1:3])
    steps = pooled((sums >= thresholds[rows][:, columns]).byte(), layer.pool) ^ inverted
    constants = layer.size, layer.outputs, layer.zero, filled, bytes_of, layer.pool
    if codes:
        found = run("bits_of_codes", x, layer.tiles[True], layer.padding, *constants)
    else:
        found = run("bits_of_bits", layer.packed, layer.tiles[False], layer.channels, *constants)
    expected = pack(steps.flatten(0, 2)).view(*steps.shape[:3], -1) if len(x) else found[:0]
    assert torch.equal(found, expected) and found.shape[1:3] == steps.shape[1:3]


@pytest.mark.parametrize(("size", "channels"), [(7, 70), (1, 5)])
def test_averages_of_codes(size, channels):
    x, multiplier = torch.randint(0, 256, (3, size, size, channels), dtype=torch.uint8), torch.tensor(1 / 32)
    expected = (x.double().sum((1, 2), keepdim=True) / 32).round().clamp(0, 255)
    assert torch.equal(run("average_codes", x, multiplier, 255).double(), expected)


@pytest.mark.parametrize("tile", rest_slow(convolutions.TILES))
def test_every_tile_gives_the_same_results(tile, monkeypatch):
    monkeypatch.setattr(convolutions, "tile_of", lambda places, outputs: tile)
    test_codes_of_codes((2, 6, 7, 40, 3, 130, 2, -1))
    test_steps_are_sums_against_thresholds((1, 5, 6, 40, 3, 70, 2, -1), False)


@pytest.mark.parametrize("make", [random_vgg, random_bncvl])
@pytest.mark.parametrize("seed", rest_slow(range(8)))
def test_a_packed_network_gives_the_logits_of_the_cpu(make, seed, monkeypatch):
    network = make(seed)
    packed = pack_network(network)
    pixels = torch.randint(0, 256, (3, *packed.image_shape), dtype=torch.uint8)
    expected = packed(pixels)
    if WHERE == "cpu":
        monkeypatch.setattr(operators, "kernels_everywhere", True)
        assert torch.equal(packed._logits(pixels), expected)
    else:
        packed.to(WHERE)
        for _ in range(3):  # computed, recorded, replayed
            assert torch.equal(packed(pixels.to(WHERE)).cpu(), expected)


LAYERS = """
import torch

from bnn_exp.bits.cuda import convolutions

# (codes, channels, size, side, outputs, pool, batch); the layers of bits take the four sizes of a tile, from the smallest on
LAYERS = *((False, 128, 3, 32, n, 2, b) for n, b in ((128, 1), (64, 8), (64, 64), (128, 64))), (True, 3, 3, 32, 128, 1, 64)
assert [convolutions.tile_of(32 * 32 * layer[6], layer[4]) for layer in LAYERS[:4]] == [*reversed(convolutions.TILES)]

for codes, channels, size, side, outputs, pool, batch in LAYERS[: int(sys.argv[2])]:
    x = torch.zeros(batch, side, side, channels if codes else channels // 8, dtype=torch.uint8)
    columns = size * -(-size * channels // 8) if codes else size * size * channels // 8
    tiles = torch.zeros(outputs // 64, columns, 64, dtype=torch.uint8)
    if codes:
        padding, bias = torch.zeros(channels, dtype=torch.uint8), torch.zeros(outputs, dtype=torch.int32)
        convolutions.codes_of_codes(x, tiles, padding, size, -1, bias, torch.zeros(outputs), 255, pool)
    else:
        thresholds = torch.zeros(size, size, outputs, dtype=torch.int32)
        inverted = torch.zeros(outputs // 8, dtype=torch.uint8)
        convolutions.bits_of_bits(x, tiles, channels, size, outputs, -1, thresholds, inverted, pool)
convolutions.average_codes(torch.zeros(2, 8, 8, 64, dtype=torch.uint8), torch.ones(()), 255)

for kernel, binary in launched:
    ptx, name = binary.asm["ptx"], kernel.__name__
    assert binary.metadata.shared <= {80: 96, 90: 224}[capability] * 1024  # the first fits all cards since that capability
    if name == "convolve":
        assert "mma" in ptx and "s32.s8.s8" in ptx and "cp.async" in ptx
print(*(kernel.__name__ for kernel, _ in launched))
"""


@pytest.mark.parametrize("target", rest_slow([(90, 1), (90, 5), (80, 5)]))
def test_the_kernels_compile_for_a_gpu(target, tmp_path):
    """All launches of some layers compile, in place of running, for a GPU that is not there, and fit the memory of any GPU.

    The products are those of the tensor cores, in int8, and inputs are copied while products are computed.
    """
    capability, layers = target
    names = compiled(tmp_path, capability, LAYERS, str(layers))
    assert names == ["spread", "convolve"] * layers + ["average"]
