"""`benchmark=machine`: measures a training step of both engines at several sizes, and keeps the result for `engine=auto`."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from rich.table import Table

from bnn_exp.commands.benchmark.machine import machine, using_threads
from bnn_exp.commands.benchmark.training_times import time_steps, whole_batches
from bnn_exp.commands.benchmark.training_ways import ENGINES, first_step
from bnn_exp.commands.task import Task
from bnn_exp.config.settings import Settings, load_settings
from bnn_exp.data.dataset import Dataset, Split
from bnn_exp.records.files import writable, write_json
from bnn_exp.records.terminal import console
from bnn_exp.training import measured, plan, precision
from bnn_exp.training.setup import settle

SIZES = {"cpu": ((64, 256, 1024), (32, 128, 512)), "cuda": ((256, 1024, 4096), (128, 1024, 8192))}  # hidden sizes, batch sizes
ROUNDS = 3


def benchmark(task: Task) -> str:
    """Measures both engines by the default rule, on an MLP and random images of 28 × 28 pixels.

    Writes `benchmark.json` to the directory of the task, and its content to the file that `engine=auto` reads:

    - `machine`: see `machine`;
    - `products`, on a CPU: the seconds by kind, see `bnn_exp.training.precision.measure_products`;
    - `steps`: for each pair of a `hidden` size and a `batch` size, the median seconds of a step, `dense` and `packed`.

    Raises:
        UserError: the machine lacks the device, or a file can't be written.
    """
    settings = load_settings(task.composed)
    device = torch.device(plan.device_of(settings.device))
    threads = settings.engine.threads or torch.get_num_threads()
    with using_threads(threads):
        settle(settings, device)
        found: dict[str, Any] = {"machine": machine(device, threads)}
        if device.type == "cpu":
            found["products"] = {kind: precision.measure_products(kind) for kind in precision.KINDS}
        found["steps"] = list(_steps(settings, device))
    _print(found)
    kept = measured.place(device.type)
    with writable(kept.parent, "BNN_EXP_CACHE=FOLDER where you may write"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        for file in (task.directory / "benchmark.json", kept):
            write_json(file, found)
    return f"in {task.directory}: benchmark.json\nengine=auto reads {kept}"


def _steps(settings: Settings, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yields the median seconds of a step of each engine, for each pair of sizes."""
    hidden_sizes, batch_sizes = SIZES[device.type]
    data = _random_images(max(batch_sizes), device)
    for hidden, batch in product(hidden_sizes, batch_sizes):
        sized = replace(
            settings,
            model=replace(settings.model, hidden_size=hidden),
            trainer=replace(settings.trainer, batch_size=batch),
        )
        steps = {name: first_step(name, sized, data) for name in ENGINES}
        batches = whole_batches(data, batch)
        for step in steps.values():
            step(next(batches)), step(next(batches))  # on a GPU, the second step is recorded
        times = time_steps(steps, batches, ROUNDS)
        yield {"hidden": hidden, "batch": batch, **{name: times[name]["median"] for name in ENGINES}}


def _random_images(rows: int, device: torch.device) -> Dataset:
    images = torch.randint(256, (rows, 1, 28, 28), dtype=torch.uint8, device=device)
    split = Split(images, torch.arange(rows, device=device) % 10)
    return Dataset(split, None, split, tuple("0123456789"), (0.5,), (0.29,), "")


def _print(found: dict[str, Any]) -> None:
    table = Table("hidden", "batch", title=f"a training step on {found['machine']['name']}", title_justify="left")
    for column in ("dense, ms", "packed, ms", "faster"):
        table.add_column(column, justify="right")
    for step in found["steps"]:
        times = (f"{1e3 * step[name]:.3g}" for name in ("dense", "packed"))
        table.add_row(str(step["hidden"]), str(step["batch"]), *times, min(ENGINES, key=lambda name: step[name]))
    console().print(table)
