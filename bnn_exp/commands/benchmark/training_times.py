"""Times training steps: every way to train takes its turn on the same batches, so a disturbance hits all ways alike."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count, islice, tee
from statistics import median

import torch
from torch import Tensor

from bnn_exp.commands.benchmark import training_ways
from bnn_exp.commands.benchmark.timing import WINDOW, in_turn, seconds_of, summary
from bnn_exp.commands.benchmark.training_ways import ENGINES, Step
from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.errors import reason
from bnn_exp.records.terminal import console

MOST = 100  # the most batches of a round


def measure(names: tuple[str, ...], settings: Settings, data: Dataset, rounds: int) -> list[dict]:
    """Measures the seconds of a training step on a whole batch, for each way in `names` (see `training_ways`).

    A way of other software that fails at its first step is left out, and a line on the console tells why.

    Returns:
        One dictionary per way:

        - `way`: the name of the way;
        - `median`, `low`, `high`: the median of the seconds of a step, and the quartiles;
        - `processor_median`: the median of the seconds of all processor cores together. Other processes disturb it less;
        - `images_per_second`;
        - `seconds_per_epoch`: a smaller last batch counts by its number of rows.
    """
    batch, floats = batch_size(settings, data), training_ways.data_for(training_ways.FP32, data)
    steps = {}
    for name in names:
        with _left_out(name) if name in training_ways.OPTIONAL else nullcontext():
            step = training_ways.first_step(name, settings, data if name in ENGINES else floats)
            if name in training_ways.OPTIONAL:
                step(next(whole_batches(data, batch)))
            steps[name] = step
    times = time_steps(steps, whole_batches(data, batch), rounds)
    rows = rows_of_epoch(settings, data)
    return [
        {"way": name, **t, "images_per_second": batch / t["median"], "seconds_per_epoch": rows / batch * t["median"]}
        for name, t in times.items()
    ]


@contextmanager
def _left_out(name: str) -> Iterator[None]:
    """Context manager: an exception of the body, which does the first step of the way `name`, becomes a line on the console."""
    try:
        yield
    except Exception as error:
        console().print(f"{name} is not measured: {reason(error)}", markup=False)


def time_steps(steps: dict[str, Step], batches: Iterator[Tensor], rounds: int) -> dict[str, dict[str, float]]:
    """Measures the time of a training step by several ways, which take turns on the same batches.

    In each round every way trains on as many batches as the quickest way manages in `WINDOW` seconds. Before the first round
    every way takes two steps: to compile, and to estimate its time. On a GPU a step between these records a CUDA graph.

    Returns:
        For each way the `median` seconds of a step, the quartiles `low` and `high`, and `processor_median`, the median of the
        seconds of all processor cores together.
    """
    first = next(batches)
    if first.device.type == "cuda":
        for name, step in steps.items():
            _seconds(name, step, [first])
    estimates = {name: _seconds(name, step, [first], warm=True)[0] for name, step in steps.items()}
    length = max(1, min(MOST, round(WINDOW / min(estimates.values()))))
    blocks = tee(iter(lambda: list(islice(batches, length)), []), len(steps))  # all ways of training get the same blocks

    def timer(name: str, step: Step, blocks: Iterator[list[Tensor]]) -> Callable[[], tuple[float, float]]:
        return lambda: _seconds(name, step, next(blocks))

    timers = {name: timer(name, step, own) for (name, step), own in zip(steps.items(), blocks, strict=True)}
    return {
        name: summary([wall for wall, _ in times]) | {"processor_median": median(busy for _, busy in times)}
        for name, times in in_turn(timers, rounds, "rounds of training, of each way").items()
    }


def batch_size(settings: Settings, data: Dataset) -> int:
    """Returns the number of train rows in a whole batch."""
    return min(settings.trainer.batch_size, len(data.train))


def rows_of_epoch(settings: Settings, data: Dataset) -> int:
    """Returns the number of train rows that an epoch trains on."""
    return min(len(data.train), batch_size(settings, data) * (settings.trainer.limit_batches or len(data.train)))


def whole_batches(data: Dataset, size: int) -> Iterator[Tensor]:
    """Yields batches of train rows without end, from one random permutation after another.

    Each batch holds `size` indices of train rows: int64, on the device of the data.
    """
    rows = len(data.train)
    for _ in count():
        order = torch.randperm(rows, device=data.train.labels.device)
        yield from order[: rows - rows % size].split(size)


def _seconds(name: str, step: Step, block: list[Tensor], warm: bool = False) -> tuple[float, float]:
    """Returns the mean seconds of a step of the way `name` over the batches in `block`: wall-clock time, and
    the time of all processor cores together."""
    device = block[0].device
    if device.type == "cuda":  # our runs are deterministic on a GPU; the loops of plain torch keep torch's default
        torch.use_deterministic_algorithms(name in ENGINES, warn_only=True)

    def train() -> None:
        for rows in block:
            step(rows)

    began = time.process_time()
    wall = seconds_of(train, 1, device, warm)
    return wall / len(block), (time.process_time() - began) / len(block)
