"""Boolean logic backpropagation's optimizer, for gradients that are real numbers."""

import torch

from bnn_exp.config import rules
from bnn_exp.optim.gradients import add_scaled, remembered, signs
from bnn_exp.optim.rule import Rule


class Bold(Rule):
    """a ← β·a + η·g; flip where a·s ≥ 1, and a = 0 there (Nguyen et al. 2024, arXiv 2405.16339).

    β, one for each tensor, is 1 − the fraction of it that flipped in the last step. State: a, one float per weight.

    Args:
        eta: η > 0, the accumulation rate, in units of 1/gradient; scheduled.
    """

    settings = rules.Bold
    scheduled = ("eta",)

    def __init__(self, params, eta: float = 1000.0, **training):
        super().__init__(params, {"eta": eta}, **training)

    def update(self, g, w, h, state, draw):
        beta = state.get("beta", torch.ones((), dtype=g.dtype, device=g.device))
        a = add_scaled(remembered(state, "a", g).mul_(beta), g, h.eta)
        flips = a * signs(w) >= 1
        a.masked_fill_(flips, 0)
        state["beta"] = 1 - flips.to(g.dtype).mean()
        return flips
