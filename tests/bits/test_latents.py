"""Flips of latent weights on a GPU are those of `quantize`. Without a GPU, Triton's interpreter runs the kernels."""

import pytest
import torch
from helpers import on_both, where

from bnn_exp.bits.latents import count_flips, note
from bnn_exp.nn import device, operators
from bnn_exp.nn.binary import quantize

pytest.importorskip("triton")
pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs")], where()


@pytest.mark.parametrize("by", ["kernels", "definition"])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 4), (41, 53), (5, 3, 3, 3)])
def test_the_count_is_that_of_the_bits_that_differ(by, shape, monkeypatch):
    """Some latent weights equal the mean of their tensor, so that their bit is 0."""
    monkeypatch.setattr(device, "on_host", lambda where: False)
    monkeypatch.setattr(operators, "kernels_everywhere", by == "kernels")
    before, after = (torch.randint(-2, 3, shape, device=WHERE).float() for _ in range(2))
    flips = torch.full((), 5, device=WHERE)
    noted = note(before)
    assert noted.dtype == torch.uint8 and len(noted) == -(-before.numel() // 8)
    count_flips(after, noted, flips)
    assert flips == 5 + (quantize(before) != quantize(after)).sum()
    count_flips(before, noted, flips)
    assert flips == 5 + (quantize(before) != quantize(after)).sum()


def test_columns_may_be_stored_last(monkeypatch):
    monkeypatch.setattr(device, "on_host", lambda where: False)
    x, flips = torch.randn(6, 4, 3, 3, device=WHERE), torch.zeros((), dtype=torch.int64, device=WHERE)
    count_flips(x, note(x.to(memory_format=torch.channels_last)), flips)
    assert flips == 0
