"""Schedules of a strength (δ, a learning rate): each maps progress, from 0 to 1, to a factor that begins at 1 and falls.

`linear` and `cosine` end at 0, and are above ½ for half of the run. `geometric` multiplies by the same number in each step and
ends at `LAST`, so δ, the share of the weights that may flip, spends equal time in each order of magnitude.
"""

import math

LAST = 1 / 1000  # the factor at which `geometric` ends
SCHEDULES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "geometric": lambda progress: LAST**progress,
}


def factor(schedule: str, step: int, total_steps: int | None) -> float:
    """Returns the factor at `step` of `total_steps`. After the last step the factor stays constant.

    Raises:
        ValueError: the schedule is unknown, or a falling schedule has no `total_steps`.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    if schedule == "constant":
        return 1.0
    if not total_steps:
        raise ValueError(f"schedule={schedule!r} needs total_steps")
    return SCHEDULES[schedule](min(step / total_steps, 1.0))
