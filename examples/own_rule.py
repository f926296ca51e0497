"""Adds an optimizer of binary weights. It becomes a choice of the command:

python examples/own_rule.py optimizer=patient optimizer.patience=2
bnn-train plugins=[examples/own_rule.py] optimizer=patient optimizer.patience=2
"""

import sys
from typing import Literal

import torch

from bnn_exp import Count, Fraction, Rule, Schedule, register_rule, remembered, schema, signs, uniform
from bnn_exp.cli import main


@schema
class Settings:
    name: Literal["patient"]
    patience: Count
    delta: Fraction
    schedule: Schedule


class Patient(Rule):
    """A bit flips, with probability δ, once its gradient has asked for the flip in `patience` steps in a row."""

    settings = Settings

    def __init__(self, params, patience: int = 3, delta: float = 0.1, **training):
        super().__init__(params, {"patience": patience, "delta": delta}, **training)

    def update(self, g, w, h, state, draw):
        waited = remembered(state, "waited", g.to(torch.uint8))
        waited.add_(waited < 255).mul_(g * signs(w) > 0)
        return (waited >= h.patience) & (uniform(g, draw) < h.delta)


register_rule(Settings, Patient, values={"patience": 3, "delta": 0.1, "schedule": "linear"})
if __name__ == "__main__":
    sys.exit(main())
