"""Axes of charts: convert numbers to positions, and choose the numbers to write beside an axis."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10


@dataclass(frozen=True)
class Axis:
    """An axis that maps numbers from `low` to `high` to positions from `start` to `end`, in units of the drawing. If `log`,
    the axis is logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the position of a number, in units of the drawing."""
        low, high, value = (log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, count: int = 5, whole: bool = False) -> list[float]:
        """Returns about `count` or fewer round numbers on the axis; whole numbers if `whole`.

        The distance between the numbers is 1, 2 or 5 times a power of ten.
        """
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
    """Returns the range of an axis that shows `values` with a small margin. `within` are limits of the range.

    None and values that are not finite are ignored.
    """
    numbers = [v for v in values if v is not None and isfinite(v)] or [0.0]
    low, high = min(numbers), max(numbers)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - air, high + air
    if within:
        low, high = max(low, within[0]), min(high, within[1])
    return low, high
