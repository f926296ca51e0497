"""Gradients rounded to few bits are unbiased and in their range; their products are exact, with the look-up and without it."""

import pytest
import torch
from helpers import rest_slow, settings_of, trainer_of

from bnn_exp.bits import bits_sha256, pack
from bnn_exp.bits.cpu.factors import BitFactors, PixelFactors
from bnn_exp.bits.cpu.kernels.digits import MOST, MOST_ROWS
from bnn_exp.bits.cpu.layout import columns_of, filled
from bnn_exp.bits.cpu.rounding import Rounding
from bnn_exp.errors import UserError
from bnn_exp.nn import processor
from bnn_exp.training import engine

COUNTER = ("optimizer=counter", "trainer.epochs=8")


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def bits(*shape):
    return torch.full(shape, 0.5).bernoulli_(generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("width", "levels"), [(4, 7), (8, 112)])
def test_rounding_keeps_the_mean_and_the_range(width, levels):
    x = normal(3, 200)
    x[1] = 0
    rounded = [Rounding(width, key)(x, 0, 3) for key in range(400)]
    codes, scales = torch.stack([c for c, _ in rounded]).double(), rounded[0][1].double()[:, None]
    assert MOST[width] == levels and codes.abs().max() == levels and scales[1] == 0 and not codes[:, 1].any()
    assert torch.allclose(scales[:, 0], x.abs().amax(1).double() / levels)
    error = (codes * scales - x.double())[:, [0, 2]] / scales[[0, 2]]
    assert error.abs().max() <= 1 + 1e-5  # a code is the floor or the ceiling of x / scale
    # each rounding error has a variance of at most 1/4: the mean of 400 stays within 5 standard deviations
    assert error.mean(0).abs().max() < 5 * (0.25 / 400) ** 0.5


def test_what_a_row_becomes_does_not_depend_on_its_neighbours():
    x, how = normal(9, 64), Rounding(8, 5)
    whole, part = how(x, 0, 9), how(x, 4, 7)
    assert torch.equal(whole[0][4:7], part[0]) and torch.equal(whole[1][4:7], part[1])
    assert not torch.equal(whole[0], Rounding(8, 6)(x, 0, 9)[0])


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("zero", [0.0, -1.0])
@pytest.mark.parametrize("look_up", [True, False])
@pytest.mark.parametrize(("rows", "neurons", "inputs"), [(70, 10, 33), (MOST_ROWS + 100, 65, 64), (5, MOST_ROWS + 70, 64)])
def test_products_of_rounded_gradients_are_exact(rows, neurons, inputs, look_up, zero, width, monkeypatch):
    if look_up and not processor.AVX512:
        pytest.skip("this processor has no AVX-512")
    monkeypatch.setattr(processor, "AVX512", look_up)
    how, grad = Rounding(width, 7), filled(normal(rows, neurons), -(-neurons // 64) * 64)
    v, x = bits(neurons, inputs), bits(rows, inputs)
    values = lambda b: b.double() * (1 - zero) + zero  # noqa: E731

    product = how.by_bits(columns_of(pack(v)), neurons, -(-inputs // 64) * 64, zero)
    found = torch.empty(rows, product.width)
    product.rows(grad, 0, rows, found)
    codes, scales = how(grad, 0, rows)
    sums = codes[:, :neurons].double() @ values(v)  # integers below 2²⁴
    assert torch.equal(found[:, :inputs], sums.float() * scales[:, None])

    factors = BitFactors(grad, columns_of(pack(x)), neurons, inputs, zero, how)
    by_neuron = filled(grad[:, :neurons].t(), -(-rows // 64) * 64).contiguous()
    codes, scales = how(by_neuron, 0, neurons)
    assert torch.equal(factors.whole(), (codes[:, :rows].double() @ values(x)).float() * scales[:, None])

    pixels = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    sums = codes[:, :rows].double() @ pixels.double()
    whole = PixelFactors(grad, pixels, neurons, how).whole()
    torch.testing.assert_close(whole, (sums * scales[:, None] / 255).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", rest_slow([4, 8]))
def test_rounded_gradients_train_and_threads_change_nothing(width):
    before, ends = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            trainer = trainer_of(*COUNTER, f"engine.gradient_bits={width}")
            for _ in range(8):
                trainer.epoch()
            ends.append((bits_sha256(trainer.network), trainer.evaluate()[0]["test_accuracy"]))
    finally:
        torch.set_num_threads(before)
    exact = trainer_of(*COUNTER, "engine=packed")
    for _ in range(8):
        exact.epoch()
    assert ends[0] == ends[1] and ends[0][0] != bits_sha256(exact.network)
    assert ends[0][1] > exact.evaluate()[0]["test_accuracy"] - 5


def test_a_resumed_training_rounds_the_same():
    straight, first, second = (trainer_of(*COUNTER, "engine.gradient_bits=4") for _ in range(3))
    straight.epoch(), straight.epoch(), first.epoch()
    second.load(first.state())
    second.epoch()
    assert bits_sha256(second.network) == bits_sha256(straight.network)


@pytest.mark.parametrize("overrides", ["model=bncvl", "engine=dense", "trainer.diagnostics=true"])
def test_gradient_bits_are_refused_where_the_packed_engine_can_not_train(overrides):
    with pytest.raises(UserError, match=r"engine\.gradient_bits=4: not with") as refused:
        engine.choose(settings_of(overrides, "engine.gradient_bits=4"), "cpu")
    assert overrides in str(refused.value) and str(refused.value).count("\n") == 1
