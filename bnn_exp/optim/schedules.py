"""How a strength (δ, a learning rate) falls over training: factors from 1 at progress 0 to 0 at progress 1."""

import math

SCHEDULES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def factor(schedule: str, step: int, total_steps: int | None) -> float:
    """The factor at `step` of `total_steps`; past the end it stays where it ended.

    Raises:
        ValueError: an unknown schedule, or one that falls without `total_steps` to fall over.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    if schedule == "constant":
        return 1.0
    if not total_steps:
        raise ValueError(f"schedule={schedule!r} needs total_steps")
    return SCHEDULES[schedule](min(step / total_steps, 1.0))
