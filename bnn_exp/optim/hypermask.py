"""HyperMask: training bits by a mask and a sign, with no real-valued copy of any weight (Shibuya et al., BinSFO, Algorithm 1).

In each step every binary tensor w has a target w* = 1[−g ≥ 0] and a mask m of 0 and 1. The step is w ← (1 − m)·w + m·w*. The
variants of HyperMask differ in the mask alone, see `bnn_exp.optim.masks`.
"""

from dataclasses import replace

from bnn_exp.config import rules
from bnn_exp.optim.masks import KERNELS, MASKS
from bnn_exp.optim.rule import Rule


class HyperMask(Rule):
    """Trains binary weights without any state per weight.

    The only state is the variance σ² of each tensor, for `ewm` and `wpm`. The default values here are not those of
    `optimizer=hypermask`: `conf/optimizer/hypermask.yaml` sets `scale` and `schedule` by mask.

    Args:
        delta: the fraction δ of a tensor that `random` and `top` select in a step, in [0, 1]; scheduled.
        mask: `random` (the reference program's rule), `top` (ours), `ewm` or `wpm` (BinSFO's).
        scale: the units in which `top` compares gradients: `tensor` (as they are), `neuron` or `factored`, see `scaled`.
        lr: the strength of `ewm` and `wpm`, > 0; scheduled. BinSFO scales it by √(batch/96).
        temperature: `const`, `gaussian` or `scaled_gaussian`, for `ewm` and `wpm`.
    """

    settings = rules.HyperMask
    scheduled = ("delta", "lr")
    kernels = KERNELS

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
        # An unknown mask is refused later, when the hyperparameters are checked.
        return MASKS[entries["mask"]].strength if entries["mask"] in MASKS else "delta"

    @staticmethod
    def reads_entries(h):
        return MASKS[h.mask].reads_entries(h)

    def update(self, g, w, h, state, draw):
        return MASKS[h.mask].flips(g, w, h, state, draw)

    @property
    def strengths(self) -> dict[str, float | None]:
        """The strength that the last step of the first group used: δ, or the lr of `ewm` and `wpm` with δ = None."""
        used = super().strengths
        return {"delta": used["delta"]} if self.strength_of(self.param_groups[0]) == "delta" else used | {"delta": None}
