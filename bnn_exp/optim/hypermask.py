"""HyperMask: training bits by a mask and a sign, with no real-valued copy of any weight (Shibuya et al., BinSFO, Algorithm 1).

Each step every binary tensor has a target w* = 1[−g ≥ 0] and a mask m; then  w ← m̄·w + m·w*.  What tells the variants apart
is who is in the mask. A random mask is the flat positions (int64) at which m is 1, so that the update costs what it selects; on
a GPU, which would have to be waited for to know how many those are, it is m itself. The others select where the gradient wants
another bit, w ≠ w*, so that their masks are the flips.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from bnn_exp.bits import device
from bnn_exp.bits.draws import Purpose, bernoulli_positions, number
from bnn_exp.bits.packing import PackedBits
from bnn_exp.config import rules
from bnn_exp.optim.rule import Factors, Rule, scaled, signs


def random_mask(w: Tensor, delta: float, draw: torch.Generator) -> Tensor:
    """m ~ Bernoulli(δ), whatever the gradient (Implementation 5): flat positions, or bool [size of w]."""
    if device.on_host(draw):
        return bernoulli_positions(w.numel(), delta, draw)
    return torch.rand(w.numel(), generator=draw, device=draw.device) < delta


def top_mask(g: Tensor, w: Tensor, delta: float) -> Tensor:
    """Of the weights that the gradient wants flipped, the δ·N with the largest |g|; N is the size of the tensor.

    Which |g| count as large is a matter of units, see `scaled`.
    """
    wrong, m = (g * signs(w)).flatten().topk(int(delta * w.numel()), sorted=False)
    if device.on_host(w):
        return m[wrong > 0]
    return torch.zeros_like(w, dtype=torch.bool).flatten().scatter_(0, m, wrong > 0).view_as(w)


def ewm_mask(g: Tensor, w: Tensor, tau: Tensor, draw: torch.Generator) -> Tensor:
    """Of the weights that the gradient wants flipped, each with probability erf(τ|g|): the error-function weighted mask."""
    u = torch.rand(g.shape, generator=draw, device=g.device, dtype=g.dtype)
    return (g * signs(w) > 0) & (u < torch.erf(tau * g.abs()))


def wpm_mask(g: Tensor, w: Tensor, tau: Tensor) -> Tensor:
    """Of the weights that the gradient wants flipped, those for which erf(τ|g|) ≥ ½."""
    return (g * signs(w) > 0) & (g.abs() >= 0.4769 / tau)


def const(lr: float, variance: Tensor, sigma_g: Tensor) -> tuple[Tensor, Tensor]:
    """τ = lr."""
    return torch.full_like(variance, lr), variance


def gaussian(lr: float, variance: Tensor, sigma_g: Tensor) -> tuple[Tensor, Tensor]:
    """τ = lr/(√2·σ), then σ² ← σ² + (lr·σ(g))²."""
    return lr / (math.sqrt(2) * variance.sqrt()), variance + (lr * sigma_g) ** 2


def scaled_gaussian(lr: float, variance: Tensor, sigma_g: Tensor) -> tuple[Tensor, Tensor]:
    """τ = lr·√π/(2σ²), then σ² ← σ² + (π/2)(lr·σ(g)/σ)²."""
    return lr * math.sqrt(math.pi) / (2 * variance), variance + (math.pi / 2) * (lr * sigma_g) ** 2 / variance


TEMPERATURES = {"const": const, "gaussian": gaussian, "scaled_gaussian": scaled_gaussian}
DENSEST = 0.25  # δ up to which the entries that a random mask selects cost less than all (1024² weights, batch 1024)
FIRST_SIGMA = 0.01  # σ₀ of the temperatures


class HyperMask(Rule):
    """Trains binary weights without any state per weight.

    The only state is, for `ewm` and `wpm`, the variance σ² of each tensor.

    Args:
        delta: the fraction δ of a tensor that `random` and `top` select in a step, in [0, 1]; scheduled.
        mask: `random` (the seed's rule), `top` (ours), `ewm` or `wpm` (BinSFO's).
        scale: the units in which `top` compares gradients: `tensor` (as they are), `neuron` or `factored`, see `scaled`.
        lr: the strength of `ewm` and `wpm`, > 0; scheduled. BinSFO scales it by √(batch/96).
        temperature: `const`, `gaussian` or `scaled_gaussian`, of `ewm` and `wpm`.
    """

    settings = rules.HyperMask
    scheduled = ("delta", "lr")

    def __init__(
        self,
        params,
        delta: float = 0.1,
        mask: str = "top",
        *,
        scale: str = "tensor",
        lr: float = 10.0,
        temperature: str = "gaussian",
        **training,
    ):
        hyper = {"delta": delta, "mask": mask, "scale": scale, "lr": lr, "temperature": temperature}
        super().__init__(params, hyper, **training)

    @classmethod
    def of(cls, settings, network, batch_size, total_steps, seed):
        return super().of(replace(settings, lr=settings.lr * (batch_size / 96) ** 0.5), network, batch_size, total_steps, seed)

    def strength_of(self, entries):
        """The strength of the group's mask."""
        return "lr" if entries["mask"] in ("ewm", "wpm") else "delta"

    @staticmethod
    def reads_entries(h):
        return h.mask == "random" and h.delta <= DENSEST

    def update(self, g, w, h, state, draw):
        if h.mask == "random":
            return self._by_chance(g, w, random_mask(w, h.delta, draw))
        if h.mask == "top":
            return top_mask(g if h.scale == "tensor" else scaled(g, h.scale), w, h.delta)
        variance = state.get("variance", torch.full((), FIRST_SIGMA**2, device=g.device))
        tau, state["variance"] = TEMPERATURES[h.temperature](h.lr, variance, g.std(correction=0))
        return ewm_mask(g, w, tau, draw) if h.mask == "ewm" else wpm_mask(g, w, tau)

    @torch.no_grad()
    def step_packed(self, i, g):
        w, (group, h) = self.tensors()[i].data, self._strength(i)
        if h.mask != "random" or device.on_host(w):
            return super().step_packed(i, g)
        from bnn_exp.bits.cuda.training import flip_at_random

        key = number(Purpose.MASK, group["seed"], group["step"], i) >> 1
        return flip_at_random(PackedBits(w, g.inputs), g.whole(), h.delta, key, self.flips[i])

    @staticmethod
    def _by_chance(g: Tensor | Factors, w: Tensor | PackedBits, m: Tensor) -> Tensor:
        """Where w ← m̄·w + m·w* changes w, for w* = 1[−g ≥ 0]."""
        if m.dtype == torch.bool:
            return m.view_as(w) & ((g <= 0) != w.bool())
        g = g.flatten()[m] if isinstance(g, Tensor) else g.entries(m)
        return m[w.flatten()[m] != (g <= 0)]

    @property
    def strengths(self) -> dict[str, float | None]:
        """What the last step of the first group used: δ, or None and the lr of `ewm` and `wpm`."""
        used = super().strengths
        return {"delta": used["delta"]} if self.strength_of(self.param_groups[0]) == "delta" else used | {"delta": None}
