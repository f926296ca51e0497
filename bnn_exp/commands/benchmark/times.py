"""How long training steps take: every way trains in turn on the same batches, so that what disturbs one disturbs all."""

import time
from collections.abc import Iterator
from itertools import count, islice
from statistics import median

import torch
from torch import Tensor

from bnn_exp.commands.benchmark import ways
from bnn_exp.commands.benchmark.timing import WINDOW, seconds_of, summary
from bnn_exp.commands.benchmark.ways import ENGINES, Step
from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.records.terminal import progress

MOST = 100  # batches of a round


def measure(names: tuple[str, ...], settings: Settings, data: Dataset, rounds: int) -> list[dict]:
    """For each way of `names` the seconds of a step on a whole batch, and what follows for an epoch.

    Returns:
        Of each way: `way`; `median`, `low`, `high`: seconds a step, quartiles; `processor_median`: of the processor's seconds,
        all threads together, which other processes disturb less; `images_per_second`; `seconds_per_epoch`: those of the rows of
        an epoch, a smaller last batch counted by its rows.
    """
    batch, floats = batch_size(settings, data), ways.data_for(ways.FP32, data)
    steps = {name: ways.first_step(name, settings, data if name in ENGINES else floats) for name in names}
    times = in_turns(steps, whole_batches(data, batch), rounds)
    rows = rows_of_epoch(settings, data)
    return [
        {"way": name, **t, "images_per_second": batch / t["median"], "seconds_per_epoch": rows / batch * t["median"]}
        for name, t in times.items()
    ]


def in_turns(steps: dict[str, Step], batches: Iterator[Tensor], rounds: int) -> dict[str, dict[str, float]]:
    """Per way the `median` seconds of a step, the quartiles `low` and `high`, and `processor_median`.

    A round is as many batches as the quickest way needs for `WINDOW` seconds; two come before, to compile and to see how many.
    """
    first = next(batches)
    probed = {name: _seconds(name, step, [first], warm=True)[0] for name, step in steps.items()}
    length = max(1, min(MOST, round(WINDOW / min(probed.values()))))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    with progress("rounds of training, of each way", rounds * len(steps)) as done:
        for _ in range(rounds):
            block = list(islice(batches, length))
            for name, step in steps.items():
                taken[name].append(_seconds(name, step, block))
                done(1)
    return {
        name: summary([wall for wall, _ in times]) | {"processor_median": median(busy for _, busy in times)}
        for name, times in taken.items()
    }


def batch_size(settings: Settings, data: Dataset) -> int:
    """The rows of a whole batch."""
    return min(settings.trainer.batch_size, len(data.train))


def rows_of_epoch(settings: Settings, data: Dataset) -> int:
    """The rows that an epoch trains on."""
    return min(len(data.train), batch_size(settings, data) * (settings.trainer.limit_batches or len(data.train)))


def whole_batches(data: Dataset, size: int) -> Iterator[Tensor]:
    """The train rows of batches of just that size, without end: of one random permutation after the other."""
    rows = len(data.train)
    for _ in count():
        order = torch.randperm(rows, device=data.train.labels.device)
        yield from order[: rows - rows % size].split(size)


def _seconds(name: str, step: Step, block: list[Tensor], warm: bool = False) -> tuple[float, float]:
    """Of a step, on the wall and of the processor, the mean over a block.

    Our runs are deterministic on a GPU; a loop of one's own is as torch comes.
    """
    device = block[0].device
    if device.type == "cuda":
        torch.use_deterministic_algorithms(name in ENGINES, warn_only=True)

    def train() -> None:
        for rows in block:
            step(rows)

    began = time.process_time()
    wall = seconds_of(train, 1, device, warm)
    return wall / len(block), (time.process_time() - began) / len(block)
