"""Bold: the optimizer of Boolean logic backpropagation, for gradients that are real numbers."""

import torch

from bnn_exp.config import rules
from bnn_exp.optim.fused import Fused, zeros
from bnn_exp.optim.gradients import remembered, signs
from bnn_exp.optim.rule import Rule


def first(bits, h):
    """Returns the state before the first step: a = 0 and β = 1."""
    state = zeros("a")(bits, h)
    return state | {"beta": torch.ones((), device=state["a"].device)}


class Bold(Rule):
    """Flips bits b by an accumulated gradient g (Nguyen et al. 2024, arXiv 2405.16339).

        a ← β·a + η·g
        flip where a·s ≥ 1, for s = 2b − 1, and set a = 0 there

    Each tensor has its own β: 1 − the fraction of its bits that flipped in the last step. State: a, one float per weight.

    Args:
        eta: η > 0, the accumulation rate, in units of 1/gradient; scheduled.
    """

    settings = rules.Bold
    scheduled = ("eta",)
    kernels = (Fused("bold", 2, "eta", state=("a", "beta"), first=first),)

    def __init__(self, params, eta: float = 1000.0, **training):
        super().__init__(params, {"eta": eta}, **training)

    def update(self, g, w, h, state, draw):
        beta = state.get("beta", torch.ones((), dtype=g.dtype, device=g.device))
        a = remembered(state, "a", g).mul_(beta).add_(g * h.eta)
        flips = a * signs(w) >= 1
        a.masked_fill_(flips, 0)
        state["beta"] = 1 - flips.to(g.dtype).mean()
        return flips
