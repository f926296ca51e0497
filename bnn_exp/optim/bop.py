"""Bop and Bop2: a bit flips when a moving average of its gradient exceeds a threshold."""

from bnn_exp.config import rules
from bnn_exp.optim.fused import Fused, zeros
from bnn_exp.optim.gradients import average, remembered, signs
from bnn_exp.optim.rule import Rule


class Bop(Rule):
    """Flips bits b by a moving average of the gradient g (Helwegen et al. 2019, arXiv 1906.02107, Algorithm 1).

        m ← (1 − γ)m + γg
        flip where m·s > τ, for s = 2b − 1

    γ = 1, τ = 0 is the plain sign rule, b ← 1[g < 0]. State: m, one float per weight.

    Args:
        gamma: γ in [0, 1], the adaptivity rate; scheduled.
        tau: τ ≥ 0, in units of the gradient.
    """

    settings = rules.Bop
    scheduled = ("gamma",)
    kernels = (Fused("bop", 1, "gamma", ("tau",), state=("m",), first=zeros("m")),)

    def __init__(self, params, gamma: float = 1e-4, tau: float = 1e-8, **training):
        super().__init__(params, {"gamma": gamma, "tau": tau}, **training)

    def update(self, g, w, h, state, draw):
        m = average(remembered(state, "m", g), g, h.gamma)
        return m * signs(w) > h.tau


class Bop2(Rule):
    """Flips bits b by two moments of the gradient g (Suarez-Ramirez et al. 2021, arXiv 2104.05124, the biased variant).

        m ← (1 − γ)m + γg,  v ← (1 − σ)v + σg²
        flip where m·s/(√v + 10⁻¹⁰) > τ, for s = 2b − 1

    State: m and v, two floats per weight.

    Args:
        gamma: γ in [0, 1]; scheduled.
        sigma: σ in [0, 1].
        tau: τ ≥ 0, in standard deviations of the gradient.
    """

    settings = rules.Bop2
    scheduled = ("gamma",)
    kernels = (Fused("bop2", 1, "gamma", ("sigma", "tau"), state=("m", "v"), first=zeros("m", "v")),)

    def __init__(self, params, gamma: float = 1e-7, sigma: float = 1e-3, tau: float = 1e-6, **training):
        super().__init__(params, {"gamma": gamma, "sigma": sigma, "tau": tau}, **training)

    def update(self, g, w, h, state, draw):
        m = average(remembered(state, "m", g), g, h.gamma)
        v = average(remembered(state, "v", g), g * g, h.sigma)
        return m * signs(w) / (v.sqrt() + 1e-10) > h.tau
