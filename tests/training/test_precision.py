"""Tests training in bf16 and with torch.compile: which numbers stay exact, and how far others may differ."""

import shutil

import pytest
import torch
from helpers import trainer_of

from bnn_exp.nn import BinaryLinear, binarize

UNIT = 2.0**-8  # the unit roundoff of bf16


@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize("pixels", [True, False])
def test_sums_of_bits_stay_exact_and_gradients_round_to_bf16(rows, pixels):
    torch.manual_seed(0)
    layer = BinaryLinear(600, 40, binary_input=not pixels)
    x = torch.randint(256, (rows, 600), dtype=torch.uint8) if pixels else binarize(torch.randn(rows, 600))
    exact = x.double() @ layer.value.detach().double().T / (255 if pixels else 1)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=2.0**-23 if pixels else 0, atol=0)
    grad = torch.randn_like(y)
    y.backward(grad)
    inputs = x.double() / (255 if pixels else 1)
    error = (layer.weight.grad.double() - grad.double().T @ inputs).abs()
    assert (error <= 2.01 * UNIT * grad.double().abs().T @ inputs.abs()).all()  # grad and the result are rounded once each
    assert error.max() > 0


@pytest.mark.parametrize("model", ["mlp", "bncvl"])
def test_bf16_learns_as_fp32_does(model):
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = trainer_of(f"model={model}", f"engine.precision={precision}", "delta=0.01", "trainer.batch_size=96")
        losses[precision] = [trainer.epoch()["train_loss"] for _ in range(5)]
    assert losses["bf16"] != losses["fp32"]  # bf16 has an effect
    assert losses["bf16"][-1] < 0.8 * losses["bf16"][0]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("model", ["mlp", "bncvl"])
def test_a_compiled_network_learns_the_same(model):
    losses = []
    for choice in ("true", "false"):
        trainer = trainer_of(f"model={model}", f"engine.compile={choice}", "dataset.limit=512", "trainer.batch_size=128")
        losses.append([trainer.epoch()["train_loss"] for _ in range(2)])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-2)  # the same sums in another order
    assert losses[0][1] == pytest.approx(losses[1][1], rel=5e-2)  # latent weights near a threshold have flipped apart
