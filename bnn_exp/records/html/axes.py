"""Axes: numbers to places on a chart, and the numbers to write beside it."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` laid from `start` to `end` in the units of the drawing; by their logarithms if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, count: int = 5, whole: bool = False) -> list[float]:
        """At most about `count` round numbers on the axis: 1, 2 or 5 times powers of ten apart, `whole` ones if asked."""
        if self.log:
            powers = [10.0**power for power in range(ceil(log10(self.low)), floor(log10(self.high)) + 1)]
            if len(powers) > 1:
                return powers[:: ceil(len(powers) / count)]
        rough = (self.high - self.low) / count
        power = 10.0 ** floor(log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        step = max(step, 1) if whole else step
        return [round(i * step, 12) for i in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]


def spread(values: Iterable[float | None], within: tuple[float, float] | None = None) -> tuple[float, float]:
    """The range for an axis that shows `values` with a little air about them, and stays `within` its own limits.

    None and numbers that are not finite don't count.
    """
    numbers = [v for v in values if v is not None and isfinite(v)] or [0.0]
    low, high = min(numbers), max(numbers)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - air, high + air
    if within:
        low, high = max(low, within[0]), min(high, within[1])
    return low, high
