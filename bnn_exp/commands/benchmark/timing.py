"""The loop of all time measurements. It times the compared ways in turn, so a disturbance hits all ways alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any, TypeVar

import torch

from bnn_exp.records.terminal import progress

ROUNDS = 15
WINDOW = 0.005  # seconds: a round repeats a call for at least this time
Measured = TypeVar("Measured")


def in_turn(ways: Mapping[str, Callable[[], Measured]], rounds: int, label: str) -> dict[str, list[Measured]]:
    """Calls every way once in each round, and shows a progress bar with `label`.

    Returns:
        For each name in `ways`, the list of results, one per round.
    """
    found: dict[str, list[Measured]] = {name: [] for name in ways}
    with progress(label, rounds * len(ways)) as done:
        for _ in range(rounds):
            for name, way in ways.items():
                found[name].append(way())
                done(1)
    return found


def time_calls(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Times several functions in turn. Before the first round each is called twice: to compile, and to estimate its time.

    Returns:
        For each name in `calls` the seconds of one call, as a `summary` over the rounds.
    """

    def timer(call: Callable[[], Any]) -> Callable[[], float]:
        repeats = max(1, round(WINDOW / max(seconds_of(call, 1, device, warm=True), 1e-9)))
        return lambda: seconds_of(call, repeats, device)

    timers = {name: timer(call) for name, call in calls.items()}
    return {name: summary(times) for name, times in in_turn(timers, rounds, "rounds, of each way").items()}


def seconds_of(call: Callable[[], Any], repeats: int, device: torch.device, warm: bool = False) -> float:
    """Returns the mean seconds of a call over `repeats` calls, including the work that the calls start on the device.

    Args:
        warm: True to make one call before the timed calls.
    """
    if warm:
        call()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(times: list[float]) -> dict[str, float]:
    """Returns the `median` and the quartiles `low` and `high` of `times`, in seconds."""
    low, _, high = quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"median": median(times), "low": low, "high": high}
