"""CEMA: a latent weight is a filter of the gradient, so two cascaded moving averages can replace it."""

from bnn_exp.config import rules
from bnn_exp.optim.fused import Fused, zeros
from bnn_exp.optim.gradients import average, remembered, signs
from bnn_exp.optim.rule import Rule


class CEMA(Rule):
    """Flips bits b by two cascaded moving averages of the gradient g (Quist, Li & van Gemert 2023, arXiv 2303.02452).

        m ← (1 − γ)m + γg,  h ← (1 − α)h + αm
        flip where h·s > 0, for s = 2b − 1

    α falls to 0 over the training, so h ends as the average of m over the whole training. State: m and h, two floats a weight.

    Args:
        gamma: γ in [0, 1], the rate of the first average.
        alpha: α in [0, 1], the rate of the second average; scheduled.
    """

    settings = rules.CEMA
    scheduled = ("alpha",)
    kernels = (Fused("cema", 1, "alpha", ("gamma",), state=("m", "h"), first=zeros("m", "h")),)

    def __init__(self, params, gamma: float = 0.1, alpha: float = 1e-3, **training):
        super().__init__(params, {"gamma": gamma, "alpha": alpha}, **training)

    def update(self, g, w, h, state, draw):
        first = average(remembered(state, "m", g), g, h.gamma)
        second = average(remembered(state, "h", g), first, h.alpha)
        return second * signs(w) > 0
