"""Flips of latent weights are those of `quantize`. Without a GPU, Triton's interpreter runs the kernels."""

import copy

import pytest
import torch
from helpers import on_both, where

from bnn_exp.bits.latents import bits_above, follow
from bnn_exp.bits.reference import unpacked
from bnn_exp.nn import device, operators
from bnn_exp.nn.binary import quantize
from bnn_exp.optim import LatentSGD

pytest.importorskip("triton")
pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs")], where()


@pytest.mark.parametrize("form", ["kernels", "compiled", "definition"])
@pytest.mark.parametrize("count", [1, 8, 21, 2173, 70_001])
def test_bits_follow_and_their_flips_are_counted(count, form, monkeypatch):
    """Some numbers equal the threshold, so that their bit is 0."""
    monkeypatch.setattr(operators, "kernels_everywhere", form == "kernels")
    monkeypatch.setattr(operators, "numba_pays", lambda numbers: form == "compiled")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    before, after = (torch.randint(-2, 3, (count,), device=WHERE).float() for _ in range(2))
    zero, flips = torch.zeros((), device=WHERE), torch.full((), 5, device=WHERE)
    bits = bits_above(before, zero)
    for now in (before, after, after):
        follow(now, zero, bits, flips)
        assert bits.dtype == torch.uint8 and torch.equal(unpacked(bits[None], torch.bool)[0, :count], now > 0)
    assert flips == 5 + ((before > 0) != (after > 0)).sum() and len(bits) == -(-count // 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("on_host", [False, True])
def test_flips_of_a_training_are_those_of_the_bits(on_host, dtype, monkeypatch):
    """Also where others write to the latent weights between steps, where channels are stored last, and in a copy."""
    monkeypatch.setattr(device, "on_host", lambda where: on_host and WHERE == "cpu")
    x = torch.randn(6, 4, 3, 3, device=WHERE, dtype=dtype).to(memory_format=torch.channels_last)
    w, expected = torch.nn.Parameter(x), 0
    optimizer = LatentSGD([w], lr=1.0)
    for step in range(6):
        if step == 3:
            w.data.neg_()
            w.detach().normal_()
        if step == 4:
            optimizer = copy.deepcopy(optimizer)
            w = optimizer.tensors()[0]
        before = quantize(w.detach())
        w.grad = torch.randn_like(w)
        optimizer.step()
        expected += int((quantize(w.detach()) != before).sum())
        assert int(optimizer.flips[0]) == expected > 0
