"""Replaces a BatchNorm of integers, and the step 1[y ≥ 0] after it, by one integer threshold for each neuron.

The threshold is found by evaluating the BatchNorm itself, not by a formula.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def thresholds(
    decide: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, inverted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Finds for each neuron a threshold t and a bool v with decide(u) = (u ≥ t) ≠ v for every u from `low` to `high`.

    Bisection calls `decide`, so the result holds for every rounding in `decide`. The decisions must be monotone in u, rising or
    falling, as the decisions of a rounded scale · u + shift ≥ 0 are. A neuron with equal decisions everywhere has t = high + 1.

    Args:
        decide: takes an integer for each neuron, int64 [neurons]; returns the decisions, bool [neurons].
        low, high: the least and the greatest possible integer, int64 [neurons], low ≤ high.
        inverted: v, where it is known: True if the decisions fall. A neuron whose decisions never change then has t = low or
            t = high + 1. None: v is the decision at `low`.

    Returns:
        t, int64 [neurons], and v, bool [neurons]: True if the threshold is inverted (the decision is True below t).
    """
    inverted = decide(low) if inverted is None else inverted
    same, changed = low - 1, high + 1
    while (changed - same > 1).any():
        middle = (same + changed).div(2, rounding_mode="floor")
        moved = decide(middle) != inverted
        same, changed = torch.where(moved, same, middle), torch.where(moved, middle, changed)
    return changed, inverted
