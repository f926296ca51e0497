"""Arithmetic on weight gradients that several rules share."""

import torch
from torch import Tensor

from bnn_exp.bits import scalar_rules

_ON_TENSORS = {"minimum": torch.minimum, "divide": torch.divide, "real": torch.tensor}
# The error function of a tensor of numbers ≥ 0, digit by digit as the compiled rules compute it.
erf = scalar_rules.compiled(lambda function: function, _ON_TENSORS)["erf"]


def signs(w: Tensor) -> Tensor:
    """Returns s = 2b − 1: −1 for a bit 0, +1 for a bit 1."""
    return (2 * w).sub_(1)


def remembered(state: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Returns the tensor `name` of a rule's state: zeros of the shape of `like` before the first step."""
    if name not in state:
        state[name] = torch.zeros_like(like)
    return state[name]


def average(m: Tensor, x: Tensor, rate: float | Tensor) -> Tensor:
    """Moves `m` to (1 − rate)·m + rate·x in place, and returns `m`.

    `torch.lerp` computes the same expression, but rounds it in another way at some places of a tensor.
    """
    rate = rate if isinstance(rate, Tensor) else torch.full((), rate, dtype=m.dtype, device=m.device)
    step = x - m
    return m.copy_(torch.where(rate.abs() < 0.5, m + rate * step, x - step * (1 - rate)))


def scaled(g: Tensor, scale: str) -> Tensor:
    """Returns a gradient [neurons, inputs] in units of its size: numbers around 1 that can be compared across weights.

    `tensor` divides by the standard deviation σ(g), `neuron` by the root mean square of a row, `factored` by
    RMS(row)·RMS(column)/RMS(tensor). `factored` estimates the size of each entry by a product (Adafactor, Shazeer & Stern
    2018, arXiv 1804.04235; here from this batch alone, without a memory). A single row is divided by σ(g). 0 stays 0.
    """
    tiny = torch.finfo(g.dtype).tiny
    if scale == "tensor" or len(g) == 1:
        size = g.std(correction=0)
    else:
        size = rms(g, 1).to(g.dtype)
        if scale == "factored":
            size = size * (rms(g, 0) / rms(g, (0, 1)).clamp(min=tiny)).to(g.dtype)
    return g / size.clamp(min=tiny)


def rms(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """Returns the root mean square of x over `dims`, float64. These dimensions stay, with size 1."""
    return x.double().square().mean(dims, keepdim=True).sqrt()
