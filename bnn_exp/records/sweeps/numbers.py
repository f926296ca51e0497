"""Reads the numbers of runs, and computes means and standard deviations over the seeds."""

import statistics
from collections.abc import Sequence
from typing import Any

from bnn_exp.errors import UserError
from bnn_exp.records.runs import Record


def number(run: Record, y: str) -> float:
    """Returns the number `y` of a run, from the summary, else from the last epoch.

    Raises:
        UserError: the run lacks this number.
    """
    value = run.summary.get(y, run.epochs[-1].get(y) if run.epochs else None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        sources = (run.summary, *run.epochs[-1:])
        known = {key for source in sources for key, v in source.items() if type(v) in (int, float)}
        raise UserError(f"report.y={y}: {run.directory} has no such number\nallowed: {', '.join(sorted(known))}")
    return float(value)


def over_seeds(runs: list[Record], key: str) -> tuple[float, float | None]:
    """Returns mean and sample standard deviation (None for a single seed) of the number `key` over the seeds of `runs`.

    Raises:
        UserError: a run lacks this number.
    """
    seeds: dict[Any, list[float]] = {}
    for run in runs:
        seeds.setdefault(run.setting("seed"), []).append(number(run, key))
    means = [statistics.fmean(numbers) for numbers in seeds.values()]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None


def has_all(runs: Sequence[Record], key: str) -> bool:
    """Returns True if there are runs, and the summaries of all runs have the number `key`."""
    return bool(runs) and all(run.summary.get(key) is not None for run in runs)
