"""BatchNorm and sign of an integer are one threshold, found by asking the BatchNorm itself."""

from collections.abc import Callable

import torch
from torch import Tensor


def thresholds(decide: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """For each neuron the integer t and the flip f with which decide(u) = (u ≥ t) ≠ f for every u from `low` to `high`.

    No algebra: bisection asks for the decisions themselves, in whatever arithmetic they are made. They need only be monotone,
    rising or falling, as a rounded scale · u + shift against 0 is. A neuron that never changes its mind has t = high + 1.

    Args:
        decide: integers, int64 [neurons], one for each neuron → its decisions, bool [neurons].
        low, high: the reachable integers, int64 [neurons], low ≤ high.

    Returns:
        t, int64 [neurons], and f, bool [neurons].
    """
    flips = decide(low)
    same, changed = low, high + 1
    while (changed - same > 1).any():
        middle = (same + changed).div(2, rounding_mode="floor")
        moved = decide(middle) != flips
        same, changed = torch.where(moved, same, middle), torch.where(moved, middle, changed)
    return changed, flips
