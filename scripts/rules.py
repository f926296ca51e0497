"""Times every rule's step on 1024 × 1024 packed weights on a CPU: by torch's operators, and compiled. Prints a table.

    python scripts/rules.py

The two ways take turns on one thread. The table gives nanoseconds of processor time for a weight, each the least of `TURNS`
steps. The gradient is computed beforehand, and lies in memory.
"""

import time
from unittest.mock import patch

import torch

from bnn_exp.bits import pack
from bnn_exp.bits.factors import ComputedGradient
from bnn_exp.optim import CEMA, Bold, Bop, Bop2, Counter, HyperMask, rule

SIDE, TURNS = 1024, 25
RULES = {
    "counter": (Counter, {}),
    "counter, scale=factored": (Counter, {"scale": "factored"}),
    "counter, bits=4": (Counter, {"bits": 4}),
    "hypermask, random": (HyperMask, {"mask": "random", "delta": 0.01}),
    "hypermask, top": (HyperMask, {"mask": "top", "delta": 0.01}),
    "hypermask, ewm": (HyperMask, {"mask": "ewm"}),
    "hypermask, wpm": (HyperMask, {"mask": "wpm"}),
    "bop": (Bop, {}),
    "bop2": (Bop2, {}),
    "cema": (CEMA, {}),
    "bold": (Bold, {}),
}


class Trained:
    """A rule with its packed weights; `step` returns the seconds of a step."""

    def __init__(self, kind, options, compiled):
        self.weights = torch.nn.Parameter(pack(torch.full((SIDE, SIDE), 0.5).bernoulli_()), requires_grad=False)
        self.rule, self.compiled = kind([self.weights], **options), compiled

    def step(self, gradient: ComputedGradient) -> float:
        with patch.object(rule, "kernels_of", rule.kernels_of if self.compiled else lambda kind, h: None):
            begin = time.thread_time()
            self.rule.announce()
            self.rule.flip(self.weights, gradient)
            self.rule.count()
            return time.thread_time() - begin


def nanoseconds(kind, options) -> list[float]:
    """Returns the nanoseconds for a weight by torch's operators, and compiled."""
    ways = [Trained(kind, options, compiled) for compiled in (False, True)]
    times = [[way.step(ComputedGradient(torch.randn(SIDE, SIDE))) for way in ways] for _ in range(TURNS)]
    return [1e9 * min(column) / SIDE**2 for column in zip(*times[3:], strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| rule | by torch | compiled |\n|---|---|---|")
    for name, (kind, options) in RULES.items():
        by_torch, compiled = nanoseconds(kind, options)
        print(f"| `{name}` | {by_torch:.1f} | {compiled:.2f} |")
