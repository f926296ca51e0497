"""Saturating counters: a memory of a few bits per weight replaces a real-valued weight and its moments."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from bnn_exp.bits.counters import pack, unpack
from bnn_exp.bits.philox import uniform
from bnn_exp.config import rules
from bnn_exp.optim.fused import Fused
from bnn_exp.optim.gradients import scaled
from bnn_exp.optim.rule import Rule


def first(bits: Callable[[], Tensor], h: SimpleNamespace) -> dict[str, Tensor]:
    """Returns the state before the first step: counters next to 0, on the side of their bit."""
    return {"counters": pack(bits().add_(2 ** (h.bits - 1) - 1).flatten(), h.bits)} if h.bits > 1 else {}


class Counter(Rule):
    """A counter c ∈ [−2ⁿ⁻¹, 2ⁿ⁻¹ − 1] of n bits for each weight, whose bit is its sign, b = 1[c ≥ 0].

        u = δ·2ⁿ⁻¹·g/σ(g)
        c ← clamp(c − ⌊u + U(0, 1)⌋)

    σ(g) is the standard deviation over the tensor. The rounding is stochastic, so that E⌊u + U⌋ = u also for u far below 1.
    n = 1 needs no state beside the bits: it is a hypermask that flips with probability min(1, δ|g|/σ(g)). Large n approaches
    a latent weight in [−1, 1] that SGD trains. Counters begin next to 0, on the side of their bit. They are stored 8 // n to a
    byte for n ≤ 4 (n = 3 in four bits), else one to a byte; these bits include the weight. The rule is this package's own.

    Args:
        bits: n, 1 to 8.
        delta: δ ≥ 0, the step as a fraction of a counter's range on one side of 0, for a gradient of one σ.
        scale: the divisor of g: `tensor` for σ(g), `neuron` or `factored` for the other divisors of `gradients.scaled`.
    """

    settings = rules.Counter
    kernels = tuple(
        Fused(f"counter_{scale}", launches, "delta", ("bits",), {"scale": scale}, ("counters",), first)
        for scale, launches in (("tensor", 2), ("neuron", 2), ("factored", 3))
    )

    def __init__(self, params, bits: int = 8, delta: float = 0.02, scale: str = "tensor", **training):
        super().__init__(params, {"bits": bits, "delta": delta, "scale": scale}, **training)

    def update(self, g, w, h, state, draw):
        half = 2 ** (h.bits - 1)
        u = scaled(g, h.scale).mul_(h.delta * half)  # in place: each new tensor would be as large as the weights
        u.add_(uniform(g, draw)).floor_()
        c = counters(w, h.bits, state).sub_(u).clamp_(-half, half - 1)
        which = (c >= 0) != w.bool()
        if h.bits > 1:
            state["counters"] = pack(c.add_(half).to(torch.uint8).flatten(), h.bits)
        return which


def counters(w: Tensor, bits: int, state: dict[str, Tensor]) -> Tensor:
    """Returns the counters of the bits w, of the same shape and dtype. At first they are next to 0."""
    if "counters" not in state:
        return w - 1
    return unpack(state["counters"], bits, w.numel()).view_as(w).to(w.dtype).sub_(2 ** (bits - 1))
