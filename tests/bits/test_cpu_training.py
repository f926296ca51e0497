"""The kernels of a training on a CPU against sums in float64, and bits that are read, flipped and transposed in packed form."""

import pytest
import torch
import torch.nn.functional as F

from bnn_exp.bits import pack, unpack
from bnn_exp.bits.cpu.factors import BitFactors, PixelFactors
from bnn_exp.bits.cpu.forward import sums_of_bits, sums_of_pixels
from bnn_exp.bits.cpu.layout import columns_of, filled, transposed
from bnn_exp.bits.cpu.ways import InBF16, InFloat32
from bnn_exp.bits.packing import PackedBits
from bnn_exp.nn import processor

UNIT = 2.0**-24  # half the distance from 1 to the next float32
SHAPES = [(16, 32, 32), (1, 3, 5), (37, 10, 64), (1030, 33, 100), (2500, 64, 96)]  # rows, neurons, inputs


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def bits(*shape):
    return torch.full(shape, 0.5).bernoulli_(generator=torch.Generator().manual_seed(2))


def some_positions(n):
    return (torch.rand(n, generator=torch.Generator().manual_seed(3)) < 0.3).nonzero().squeeze(1)


def near(found, exact, terms, rows):
    """Returns True if `found` keeps the bound of every order of summation, rows · u · Σ|terms| (Higham 2002, eq. 4.4)."""
    return ((found.double() - exact).abs() <= (rows + 2) * UNIT * terms).all()


def bit_factors(grad, x, zero):
    """Returns the factors of gradients [rows, neurons] and bits x [rows, inputs]."""
    neurons, inputs = grad.shape[1], x.shape[1]
    return BitFactors(filled(grad, -(-neurons // 64) * 64), columns_of(pack(x)), neurons, inputs, zero)


def values(x, zero):
    return x * (1 - zero) + zero


@pytest.mark.parametrize(("rows", "neurons", "inputs"), SHAPES)
@pytest.mark.parametrize("zero", [0.0, -1.0])
def test_the_gradient_of_weights_is_gradients_times_inputs(rows, neurons, inputs, zero):
    grad, x = normal(rows, neurons), bits(rows, inputs)
    at, factors = some_positions(neurons * inputs), bit_factors(grad, x, zero)
    exact, terms = (f(grad.double()).T @ f(values(x, zero).double()) for f in (lambda t: t, torch.abs))
    found = factors.entries(at)
    # for values −1 and 1 the kernel computes Σ g·x as 2·Σ g[x = 1] − Σ g
    assert found.shape == at.shape and near(found, exact.flatten()[at], (1 - 2 * zero) * terms.flatten()[at], rows)
    assert near(factors.whole(), exact, terms, rows)


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 3, 5), (37, 10, 64), (600, 70, 100)])
@pytest.mark.parametrize("zero", [0.0, -1.0])
def test_sums_of_bits_are_exact(rows, outputs, inputs, zero):
    x, v = bits(rows, inputs), bits(outputs, inputs)
    sums = sums_of_bits(pack(x), PackedBits(pack(v), inputs), zero)
    numbers = (sums.a * sums.z + sums.c)[:, :outputs]
    assert numbers.tolist() == (values(x, zero).double() @ values(v, zero).double().T).tolist()


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 3, 5), (37, 10, 64), (600, 70, 101)])
@pytest.mark.parametrize("zero", [0.0, -1.0])
@pytest.mark.parametrize("ink", [0.1, 1.0])  # about the fraction of pixels that are not 0
@pytest.mark.parametrize("vnni", [True, False])
def test_sums_of_pixels_are_exact(rows, outputs, inputs, zero, ink, vnni, monkeypatch):
    if vnni and not processor.VNNI:
        pytest.skip("this processor has no AVX-512 VNNI")
    monkeypatch.setattr(processor, "VNNI", vnni)
    chance = torch.Generator().manual_seed(6)
    x = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=chance)
    x[torch.rand(rows, inputs, generator=chance) > ink] = 0
    w = bits(outputs, inputs)
    exact = x.double() @ values(w, zero).double().T
    found = sums_of_pixels(x, PackedBits(pack(w), inputs), zero)
    assert torch.equal(found.z[:, :outputs], exact.float() / 255)


@pytest.mark.parametrize(("rows", "neurons", "inputs"), SHAPES)
def test_the_gradient_of_weights_on_pixels(rows, neurons, inputs):
    grad = normal(rows, neurons)
    x = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    x[:, 0] = 0  # weights on a pixel that is always 0 have the gradient 0
    at, factors = some_positions(neurons * inputs), PixelFactors(filled(grad, 128), x, neurons)
    exact, terms = (e.T @ (x.double() / 255) for e in (grad.double(), grad.double().abs()))
    found = factors.entries(at)
    assert near(found, exact.flatten()[at], terms.flatten()[at], rows) and near(factors.whole(), exact, terms, rows)
    assert (found[at % inputs == 0] == 0).all()


@pytest.mark.parametrize(("rows", "neurons", "inputs"), [(64, 32, 32), (67, 96, 64), (300, 64, 100), (70, 10, 32), (3, 32, 5)])
@pytest.mark.parametrize("zero", [0.0, -1.0])
@pytest.mark.parametrize("look_up", [True, False])
def test_the_gradient_of_inputs_is_gradients_times_weights(rows, neurons, inputs, zero, look_up, monkeypatch):
    if look_up and not processor.AVX512:
        pytest.skip("this processor has no AVX-512")
    monkeypatch.setattr(processor, "AVX512", look_up)
    grad, v, width = normal(rows, neurons), bits(neurons, inputs), -(-inputs // 64) * 64
    product, found = InFloat32().by_bits(columns_of(pack(v)), neurons, width, zero), torch.empty(rows, width)
    product.rows(filled(grad, -(-neurons // 64) * 64), 0, rows, found)
    exact, terms = (f(grad.double()) @ f(values(v, zero).double()) for f in (lambda t: t, torch.abs))
    assert near(found[:, :inputs], exact, terms, neurons)


@pytest.mark.parametrize("rows", [2, 64, 333])
def test_transposed_bytes_and_bits(rows):
    x = torch.randint(0, 256, (rows, 37), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(transposed(x), F.pad(x.T, (0, -rows % 64)))
    assert torch.equal(columns_of(x), pack(F.pad(unpack(x, (rows, 8 * 37)).T, (0, -rows % 64))))


def test_packed_bits_are_read_and_flipped_where_they_lie():
    x, at = bits(7, 13), some_positions(7 * 13)
    packed = PackedBits(pack(x), 13)
    assert packed.numel() == 91 and torch.equal(packed[at], x.flatten()[at])
    assert packed.flip(at) == len(at)
    x.view(-1)[at] = 1 - x.view(-1)[at]
    assert torch.equal(packed.unpack(), x)
    assert packed.flip(x == 1) == int(x.sum()) and not packed.packed.any()


BF16 = 2.0**-8  # the unit roundoff of bf16


@pytest.mark.parametrize("look_up", [True, False])
@pytest.mark.parametrize("zero", [0.0, -1.0])
@pytest.mark.parametrize(("rows", "neurons", "inputs"), [*SHAPES, (5, 2100, 1100)])
def test_products_in_bf16_round_by_its_unit(rows, neurons, inputs, zero, look_up, monkeypatch):
    if look_up and not processor.AVX512_BF16:
        pytest.skip("this processor has no AVX512-BF16")
    monkeypatch.setattr(processor, "AMX", not look_up)
    way, width = InBF16(), -(-inputs // 64) * 64
    grad, v, x = normal(rows, neurons), bits(neurons, inputs), bits(rows, inputs)
    pixels = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    product, found = way.by_bits(columns_of(pack(v)), neurons, width, zero), torch.full((rows, width), torch.nan)
    filled_grad = filled(grad, -(-neurons // 64) * 64)
    product.rows(filled_grad, 0, rows // 2, found)
    product.rows(filled_grad, rows // 2, rows, found)
    assert found.isfinite().all()
    of_bits = BitFactors(filled_grad, columns_of(pack(x)), neurons, inputs, zero, way)
    of_pixels = PixelFactors(filled_grad, pixels, neurons, way)
    for ours, a, b in (
        (found[:, :inputs], grad, values(v, zero)),
        (of_bits.whole(), grad.T, values(x, zero)),
        (of_pixels.whole(), grad.T, pixels / 255),
    ):
        exact, terms = a.double() @ b.double(), a.double().abs() @ b.double().abs()
        error = (ours.double() - exact).abs()
        assert (error <= 2.01 * BF16 * terms).all()  # numbers, or sums of five, are rounded, and results of torch's product
        assert error.max() > UNIT * terms.max()


@pytest.mark.parametrize("way", [InFloat32(), InBF16()], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "neurons", "inputs"), [*SHAPES, (1100, 70, 300)])
def test_blocks_of_neurons_are_parts_of_the_whole_gradient(rows, neurons, inputs, way):
    grad = filled(normal(rows, neurons), -(-neurons // 64) * 64)
    pixels = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    columns = columns_of(pack(bits(rows, inputs)))
    for factors in (BitFactors(grad, columns, neurons, inputs, -1.0, way), PixelFactors(grad, pixels, neurons, way)):
        blocks = list(factors.blocks(16))
        assert {len(block) for block in blocks[:-1]} <= {16} and len(blocks[-1]) <= 17
        assert torch.equal(torch.cat(blocks), factors.whole())
