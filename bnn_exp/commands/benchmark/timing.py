"""Times of several ways to do the same, taken in turns, so that what disturbs one disturbs all."""

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch

from bnn_exp.records.terminal import progress

ROUNDS = 15
WINDOW = 0.005  # seconds that a way is repeated for in a round, at least


def in_turns(ways: dict[str, Callable[[], Any]], device: torch.device, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Per way the median seconds of a call, and the quartiles: `median`, `low`, `high`. Each is called once before that."""
    repeats = {name: max(1, round(WINDOW / max(seconds_of(way, 1, device, warm=True), 1e-9))) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with progress("rounds, of each way", rounds * len(ways)) as done:
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(seconds_of(way, repeats[name], device))
                done(1)
    return {name: summary(times) for name, times in seconds.items()}


def seconds_of(way: Callable[[], Any], repeats: int, device: torch.device, warm: bool = False) -> float:
    """Of a call of `way`, the mean of `repeats`, the device waited for; `warm` calls it once before."""
    if warm:
        way()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        way()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(times: list[float]) -> dict[str, float]:
    """`median`, and `low` and `high`, the quartiles."""
    low, _, high = quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"median": median(times), "low": low, "high": high}
