"""The masks of HyperMask (Shibuya et al., BinSFO, section 3). A mask selects weights; a step sets their bits to 1[−g ≥ 0].

Each mask is an object that returns the flips of a step: the selected weights whose bit changes. `random` selects weights before
it reads their gradients, so its work is proportional to their number. The other masks select only weights whose bit the
gradient wants flipped.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from bnn_exp.bits.philox import Philox, uniform
from bnn_exp.optim.fused import Fused
from bnn_exp.optim.gradients import erf, scaled, signs

DENSEST = 0.25  # up to this δ, computing the selected entries of a gradient is faster than all (1024² weights, batch 1024)
FIRST_SIGMA = 0.01  # σ₀, with which the temperatures begin


class Mask:
    """A kind of mask of the rule HyperMask: it selects the bits that a step may flip.

    `strength` names the hyperparameter that says how many bits the mask selects.
    """

    strength = "delta"

    def reads_entries(self, h: SimpleNamespace) -> bool:
        """Returns True if the mask selects weights first and then reads only their entries of the gradient."""
        return False

    def flips(self, g: Tensor, w: Tensor, h: SimpleNamespace, state: dict[str, Tensor], draw: Philox) -> Tensor:
        """Returns the bits that flip in this step. For arguments and result, see `Rule.update`."""
        raise NotImplementedError


class Random(Mask):
    """The mask `random`: m ~ Bernoulli(δ), independent of the gradient (BinSFO, Implementation 5)."""

    def reads_entries(self, h):
        return h.delta <= DENSEST

    def flips(self, g, w, h, state, draw):
        if isinstance(g, Tensor):
            return (uniform(g, draw) < h.delta) & ((g <= 0) != w.bool())
        m = draw.below(w.numel(), h.delta)
        return m[w.flatten()[m] != (g.entries(m) <= 0)]


class Top(Mask):
    """The mask `top`: of the weights that the gradient wants flipped, the δ·N with the largest |g|. N is the tensor's size.

    `scale` chooses the units in which |g| is compared, see `bnn_exp.optim.gradients.scaled`. δ is rounded to float32. Of
    weights with equal |g| those at the lowest places flip.
    """

    def flips(self, g, w, h, state, draw):
        g = g if h.scale == "tensor" else scaled(g, h.scale)
        wanted = (g * signs(w)).flatten()  # above 0 where the gradient wants a flip
        delta = torch.full((), h.delta, device=w.device) if isinstance(h.delta, float | int) else h.delta
        values, order = wanted.sort(descending=True, stable=True)
        first = torch.arange(w.numel(), device=w.device) < (delta.double() * w.numel()).floor()
        return torch.zeros_like(wanted, dtype=torch.bool).scatter_(0, order, first & (values > 0)).view_as(w)


class ErrorFunction(Mask):
    """The mask `ewm` (error-function weighted): each weight that the gradient wants flipped, with probability erf(τ|g|)."""

    strength = "lr"

    def flips(self, g, w, h, state, draw):
        tau = temperature(g, h, state)
        return (g * signs(w) > 0) & (uniform(g, draw) < erf(tau * g.abs()))


class Probable(Mask):
    """The mask `wpm` (weighted probability): each weight that the gradient wants flipped, if erf(τ|g|) ≥ ½."""

    strength = "lr"

    def flips(self, g, w, h, state, draw):
        tau = temperature(g, h, state)
        return (g * signs(w) > 0) & (g.abs() >= 0.4769 / tau)


MASKS: dict[str, Mask] = {"random": Random(), "top": Top(), "ewm": ErrorFunction(), "wpm": Probable()}


def const(lr: float, variance: Tensor, sigma_g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the constant temperature τ = lr, and the variance σ² unchanged."""
    return torch.ones_like(variance) * lr, variance


def gaussian(lr: float, variance: Tensor, sigma_g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the temperature τ = lr/(√2·σ) and the next variance σ² + (lr·σ(g))², from the `variance` σ²."""
    return lr / (math.sqrt(2) * variance.sqrt()), variance + (lr * sigma_g) ** 2


def scaled_gaussian(lr: float, variance: Tensor, sigma_g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the temperature τ = lr·√π/(2σ²) and the next variance σ² + (π/2)(lr·σ(g)/σ)², from the `variance` σ²."""
    return lr * math.sqrt(math.pi) / (2 * variance), variance + (math.pi / 2) * (lr * sigma_g) ** 2 / variance


TEMPERATURES = {"const": const, "gaussian": gaussian, "scaled_gaussian": scaled_gaussian}


def temperature(g: Tensor, h: SimpleNamespace, state: dict[str, Tensor]) -> Tensor:
    """Returns the temperature τ of this step for the gradient g, and stores the variance σ² for the next step in `state`."""
    variance = state["variance"] if "variance" in state else first_variance(lambda: g, h)["variance"]
    tau, state["variance"] = TEMPERATURES[h.temperature](h.lr, variance, g.std(correction=0))
    return tau


def first_variance(bits: Callable[[], Tensor], h: SimpleNamespace) -> dict[str, Tensor]:
    """Returns the state before the first step of `ewm` and `wpm`: the variance σ₀²."""
    return {"variance": torch.full((), FIRST_SIGMA**2, device=bits().device)}


def _heated(mask: str, temperature: str, launches: int) -> Fused:
    only = {"mask": mask, "temperature": temperature}
    return Fused(f"{mask}_{temperature}", launches, "lr", only=only, state=("variance",), first=first_variance)


KERNELS = (
    Fused("random", 1, "delta", only={"mask": "random"}),
    *(
        Fused(f"top_{scale}", n, "delta", only={"mask": "top", "scale": scale})
        for scale, n in (("tensor", 5), ("neuron", 6), ("factored", 7))
    ),
    *(_heated(mask, name, 1 if name == "const" else 3) for mask in ("ewm", "wpm") for name in TEMPERATURES),
)
