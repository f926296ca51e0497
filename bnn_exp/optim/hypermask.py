"""HyperMask: training bits by a mask and a sign, with no real-valued copy of any weight (Shibuya et al., BinSFO, Algorithm 1).

Each step every binary tensor has a target w* = 1[−g ≥ 0] and a mask m; then  w ← m̄·w + m·w*.  What tells the variants apart
is who is in the mask. A mask is the flat positions (int64) at which m is 1, so that the update costs what the mask selects.
"""

import math

import torch
from torch import Tensor

from bnn_exp.optim.schedules import factor
from bnn_exp.randomness import Purpose, bernoulli_positions, generator


def random_mask(g: Tensor, w: Tensor, delta: float, draw: torch.Generator) -> Tensor:
    """m ~ Bernoulli(δ), whatever the gradient (Implementation 5)."""
    return bernoulli_positions(w.numel(), delta, draw)


def top_mask(g: Tensor, w: Tensor, delta: float) -> Tensor:
    """Of the weights that the gradient wants flipped, the δ·N with the largest |g|; N is the size of the tensor."""
    wrong, m = (g * (2 * w - 1)).topk(int(delta * w.numel()), sorted=False)
    return m[wrong > 0]


def ewm_mask(g: Tensor, w: Tensor, tau: Tensor, draw: torch.Generator) -> Tensor:
    """Of the weights that the gradient wants flipped, each with probability erf(τ|g|): the error-function weighted mask."""
    u = torch.rand(g.shape, generator=draw, device=g.device, dtype=g.dtype)
    return ((g * (2 * w - 1) > 0) & (u < torch.erf(tau * g.abs()))).nonzero().squeeze(1)


def wpm_mask(g: Tensor, w: Tensor, tau: Tensor) -> Tensor:
    """Of the weights that the gradient wants flipped, those for which erf(τ|g|) ≥ ½."""
    return ((g * (2 * w - 1) > 0) & (g.abs() >= 0.4769 / tau)).nonzero().squeeze(1)


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
MASKS = ("random", "top", "ewm", "wpm")
FIRST_SIGMA = 0.01  # σ₀ of the temperatures


class HyperMask(torch.optim.Optimizer):
    """Trains binary weights (tensors of 0. and 1., see `bnn_exp.nn.BinaryLayer`) without any state per weight.

    The only state is the step and, for `ewm` and `wpm`, the variance σ² of each tensor. Step t of tensor i draws its mask
    from (seed, t, i) alone. `flips` counts the bits flipped in each tensor, until its reader sets it back.

    Args:
        params: binary tensors, or parameter groups of them.
        delta: the fraction δ of a tensor that `random` and `top` select in a step, in [0, 1].
        mask: `random` (the seed's rule), `top` (ours), `ewm` or `wpm` (BinSFO's).
        lr: the strength of `ewm` and `wpm`, > 0. BinSFO scales it by √(batch/96).
        temperature: `const`, `gaussian` or `scaled_gaussian`, of `ewm` and `wpm`.
        schedule: `constant`, `linear` or `cosine`: how δ and lr fall to 0 over `total_steps` steps.
        seed: of the masks, ≥ 0.

    Raises:
        ValueError: an argument outside of its range, by name.
    """

    def __init__(
        self,
        params,
        delta: float = 0.1,
        mask: str = "top",
        *,
        lr: float = 10.0,
        temperature: str = "gaussian",
        schedule: str = "constant",
        total_steps: int | None = None,
        seed: int = 0,
    ):
        if not 0 <= delta <= 1:
            raise ValueError(f"delta={delta}: must be in [0, 1]")
        if lr <= 0:
            raise ValueError(f"lr={lr}: must be > 0")
        for name, given, known in (("mask", mask, MASKS), ("temperature", temperature, TEMPERATURES)):
            if given not in known:
                raise ValueError(f"{name}={given!r}: must be one of {', '.join(known)}")
        factor(schedule, 0, total_steps)
        options = {"delta": delta, "mask": mask, "lr": lr, "temperature": temperature}
        super().__init__(params, options | {"schedule": schedule, "total_steps": total_steps, "seed": seed, "step": 0})
        self.flips = [torch.zeros((), dtype=torch.int64, device=p.device) for p in self.tensors()]

    def tensors(self) -> list[Tensor]:
        """The tensors it trains, in the order of `flips` and of the i in (seed, t, i)."""
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every tensor that has a gradient; returns the closure's loss, if there is one."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        owners = [group for group in self.param_groups for _ in group["params"]]
        for i, (group, p) in enumerate(zip(owners, self.tensors(), strict=True)):
            if p.grad is None:
                continue
            g, w = p.grad.flatten(), p.view(-1)
            m = self._mask(g, w, group, self.state[p], generator(p.device, Purpose.MASK, group["seed"], group["step"], i))
            target = (g[m] <= 0).to(w.dtype)  # w* = 1[−g ≥ 0]
            self.flips[i] += (w[m] != target).sum()
            w[m] = target  # w ← m̄·w + m·w*
        for group in self.param_groups:
            group["step"] += 1
        return loss

    @property
    def strengths(self) -> dict[str, float | None]:
        """What the last step of the first group used: δ, or None and the lr of `ewm` and `wpm`."""
        group = self.param_groups[0]
        scale = factor(group["schedule"], max(group["step"] - 1, 0), group["total_steps"])
        if group["mask"] in ("random", "top"):
            return {"delta": scale * group["delta"]}
        return {"delta": None, "lr": scale * group["lr"]}

    @staticmethod
    def _mask(g: Tensor, w: Tensor, group: dict, state: dict, draw: torch.Generator) -> Tensor:
        scale = factor(group["schedule"], group["step"], group["total_steps"])
        if group["mask"] == "random":
            return random_mask(g, w, scale * group["delta"], draw)
        if group["mask"] == "top":
            return top_mask(g, w, scale * group["delta"])
        temperature = TEMPERATURES[group["temperature"]]
        variance = state.get("variance", torch.full((), FIRST_SIGMA**2, device=g.device))
        tau, state["variance"] = temperature(scale * group["lr"], variance, g.std(correction=0))
        return ewm_mask(g, w, tau, draw) if group["mask"] == "ewm" else wpm_mask(g, w, tau)
