"""Triton's kernels for inference against products of integers. Without a GPU, Triton's interpreter runs the kernels."""

import pytest
import torch
import torch.nn.functional as F
from helpers import compiled, on_both, where

from bnn_exp.bits import from_tiles, laid_out, operators, pack, to_tiles
from bnn_exp.bits.layout import in_rows
from bnn_exp.nn import device
from bnn_exp.nn.norm import NO_EPS

pytest.importorskip("triton")
from bnn_exp.bits.cuda import inference

pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs")], where()
NEVER = torch.iinfo(torch.int32).max
# (rows, inputs, outputs, value of a bit 0): few rows and more than `inference.FEW`, in sizes that are no multiple of anything
SIZES = [(0, 8, 8, 0), (1, 70, 5, -1), (3, 300, 9, 0), (9, 37, 9, -1), (19, 333, 66, -1), (18, 40, 10, 0)]


class Layer:
    """A layer with random weights: packed bits and pixels x as inputs, and the exact sums of both by products of integers."""

    def __init__(self, rows: int, inputs: int, outputs: int, zero: int):
        weights = torch.randint(0, 2, (outputs, inputs))
        bits, self.pixels = torch.randint(0, 2, (rows, inputs)), torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
        self.bits = pack(bits) if rows else torch.zeros(0, -(-inputs // 8), dtype=torch.uint8)
        self.tiles, values = to_tiles(pack(weights)), weights * (1 - zero) + zero
        self.sums = {"bit": bits @ values.T, "pixel": self.pixels.long() @ values.T}
        self.bits, self.pixels, self.tiles = self.bits.to(WHERE), self.pixels.to(WHERE), self.tiles.to(WHERE)


@pytest.mark.parametrize("size", SIZES)
def test_sums_are_those_of_integers(size):
    layer, (*_, outputs, zero) = Layer(*size), size
    assert torch.equal(inference.bit_sums(layer.bits, layer.tiles, outputs, zero).cpu().long(), layer.sums["bit"])
    assert torch.equal(inference.pixel_sums(layer.pixels, layer.tiles, outputs, zero).cpu().long(), layer.sums["pixel"])


@pytest.mark.parametrize("size", SIZES)
def test_steps_are_sums_against_thresholds(size):
    (rows, _, outputs, zero), layer = size, Layer(*size)
    missing = 64 * len(layer.tiles) - outputs
    inverted = torch.randint(0, 2, (outputs,))
    bytes_of = pack(F.pad(inverted, (0, missing)))[0].to(WHERE)
    for kind, x in (("bit", layer.bits), ("pixel", layer.pixels)):
        sums = layer.sums[kind]
        # The thresholds are sums that occur, so that equality decides; the first output never reaches its threshold.
        thresholds = sums[torch.randint(0, rows, (outputs,)), torch.arange(outputs)] if rows else torch.zeros(outputs)
        thresholds[0] = NEVER
        filled = F.pad(thresholds, (0, missing), value=NEVER).to(WHERE, torch.int32)
        steps = getattr(inference, f"{kind}_steps")(x, in_rows(layer.tiles), filled, bytes_of, zero).cpu()
        expected = F.pad((sums >= thresholds) ^ (inverted == 1), (0, missing))
        assert torch.equal(steps, pack(expected) if rows else steps[:0])


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("size", [(2, 70, 5, -1), (17, 37, 5, 0)])
def test_scores_are_rounded_as_on_a_cpu(size, pixels):
    layer, (*_, outputs, zero) = Layer(*size), size
    offset = torch.randint(-(2**24), 2**24, (outputs,), dtype=torch.int32)  # so that the conversion to float32 rounds
    weight, bias = torch.randn(outputs), torch.randn(outputs)
    factor, divisor = (1, 510.0) if pixels else (2, 4.0)
    sums = layer.sums["pixel" if pixels else "bit"]
    product = (offset + factor * sums).float() / divisor
    expected = F.batch_norm(product, torch.zeros(outputs), torch.ones(outputs), weight, bias, eps=NO_EPS)
    affine = (*(t.to(WHERE) for t in (offset, weight, bias)), factor, divisor)
    x = layer.pixels if pixels else layer.bits
    assert torch.equal(inference.scores(x, layer.tiles, *affine, zero, pixels).cpu(), expected)
    cpu = (t.cpu() if isinstance(t, torch.Tensor) else t for t in (x, layer.tiles, *affine, zero, pixels))
    assert torch.equal(operators.scores(*cpu), expected)


@pytest.mark.parametrize("rows", [2, 17])
def test_rows_of_any_strides(rows):
    """Rows of bits may be longer than those of the weights: what follows does not count. Pixels may lie in any order."""
    layer, outputs = Layer(2 * rows, 44, 9, -1), 9
    wide = torch.cat([layer.bits, torch.randint(0, 256, (2 * rows, 6), dtype=torch.uint8, device=WHERE)], 1)
    shifted = torch.cat([layer.bits[:, :1], layer.bits], 1)[:, 1:]
    for x in (wide, shifted, layer.bits.T.contiguous().T):
        assert torch.equal(inference.bit_sums(x[::2], layer.tiles, outputs, -1).cpu().long(), layer.sums["bit"][::2])
    columns = layer.pixels.T.contiguous().T
    beside = torch.cat([layer.pixels, layer.pixels], 1)[:, :44]
    for x in (columns, beside):
        assert torch.equal(inference.pixel_sums(x[::2], layer.tiles, outputs, -1).cpu().long(), layer.sums["pixel"][::2])


@pytest.mark.parametrize(("zero", "one"), [(0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5), (0.25, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_real_inputs_are_multiplied_by_the_values(zero, one, dtype):
    bits, x = torch.randint(0, 2, (70, 45)), torch.randint(-8, 9, (5, 45), device=WHERE).to(dtype)
    values = torch.where(bits == 1, one, zero).to(WHERE)
    found = inference.real_product(x, to_tiles(pack(bits)).to(WHERE), 70, zero, one)
    # These sums are exact: bfloat16 rounds each once, at the end
    assert found.dtype == dtype and torch.equal(found, (x.double() @ values.double().T).to(dtype))


@pytest.mark.parametrize("tile", inference.TILES[:2])
def test_large_tiles_give_the_same_sums(tile, monkeypatch):
    monkeypatch.setattr(inference, "tile_of", lambda outputs, rows: tile)
    layer = Layer(67, 300, 130, -1)
    assert torch.equal(inference.bit_sums(layer.bits, layer.tiles, 130, -1).cpu().long(), layer.sums["bit"])
    assert torch.equal(inference.pixel_sums(layer.pixels, layer.tiles, 130, -1).cpu().long(), layer.sums["pixel"])


def test_long_rows_are_read_in_parts(monkeypatch):
    monkeypatch.setattr(inference, "_MOST_WORDS", 4)
    layer = Layer(2, 400, 9, -1)
    assert torch.equal(inference.bit_sums(layer.bits, layer.tiles, 9, -1).cpu().long(), layer.sums["bit"])
    assert torch.equal(inference.pixel_sums(layer.pixels, layer.tiles, 9, -1).cpu().long(), layer.sums["pixel"])


def test_tiles_on_a_gpu_lie_in_rows(monkeypatch):
    packed = pack(torch.randint(0, 2, (70, 333)))
    tiles = to_tiles(packed)
    rows = in_rows(tiles)
    assert torch.equal(rows, tiles) and torch.equal(from_tiles(rows, 70), packed)
    assert rows.stride(1) == 1 and rows.stride(2) % 64 == 0 and in_rows(rows) is rows
    assert laid_out(rows).is_contiguous() and laid_out(tiles) is tiles  # for a CPU
    monkeypatch.setattr(device, "on_host", lambda where: False)
    assert laid_out(tiles).stride() == rows.stride()


LAYERS = """
import torch

from bnn_exp.bits.cuda import inference

# The last four take the four sizes of a tile.
LAYERS = (784, 4096, 1), (4096, 4096, 1), (4096, 64, 17), (512, 8192, 64), (512, 8192, 128), (512, 8192, 512)
assert [inference.tile_of(*layer[1:]) for layer in LAYERS[2:]] == [*reversed(inference.TILES)]

for inputs, outputs, rows in LAYERS if capability == 90 else LAYERS[:3]:
    pixels, bits = torch.zeros(rows, inputs, dtype=torch.uint8), torch.zeros(rows, inputs // 8, dtype=torch.uint8)
    tiles = torch.zeros(outputs // 64, inputs // 8, 64, dtype=torch.uint8)
    thresholds, inverted = torch.zeros(outputs, dtype=torch.int32), torch.zeros(outputs // 8, dtype=torch.uint8)
    if inputs == 784:
        inference.pixel_steps(pixels, tiles, thresholds, inverted, -1)
    elif rows == 1:
        inference.scores(bits, tiles, thresholds, torch.zeros(outputs), torch.zeros(outputs), 2, 1.0, -1, False)
    else:
        inference.bit_steps(bits, tiles, thresholds, inverted, -1)

for kernel, binary in launched:
    ptx, name = binary.asm["ptx"], kernel.__name__
    assert binary.metadata.shared <= {80: 96, 90: 224}[capability] * 1024  # the first fits all cards since that capability
    if name == "few_bits":
        assert "popc.b32" in ptx and "ld.global.v4.b32" in ptx
    if name == "many":
        assert ("wgmma" if capability == 90 else "mma.sync") in ptx
print(*(kernel.__name__ for kernel, _ in launched))
"""


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_the_kernels_compile_for_a_gpu(capability, tmp_path):
    """All launches of some layers compile, in place of running, for a GPU that is not there, and fit the memory of any GPU.

    The popcount is the processor's, the products are those of the tensor cores, weights are read in words of 16 bytes.
    """
    names = compiled(tmp_path, capability, LAYERS)
    assert names == ["few_pixels", "few_bits", *["spread", "many"] * (4 if capability == 90 else 1)]
