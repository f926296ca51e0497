"""`benchmark=machine`: measures a training step of both engines at several sizes, and keeps the result for `engine=auto`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from rich.table import Table

from bnn_exp.commands.benchmark.machine import machine, using_threads
from bnn_exp.commands.benchmark.training_times import time_steps, whole_batches
from bnn_exp.commands.benchmark.training_ways import ENGINES, first_step
from bnn_exp.commands.task import Task
from bnn_exp.config import rules
from bnn_exp.config.settings import Settings, load_settings
from bnn_exp.records.files import writable, write_json
from bnn_exp.records.terminal import console
from bnn_exp.training import measured, plan, precision
from bnn_exp.training.setup import settle
from bnn_exp.training.tiny import random_images

# Hidden sizes and batch sizes, by the type of the device. Far beyond these sizes it is certain which engine is faster.
SIZES = {"cpu": ((64, 256, 1024), (32, 256, 1024)), "cuda": ((256, 1024, 4096), (128, 1024, 8192))}
RULES: dict[str, Any] = {  # by the part of the gradient that a rule reads
    "entries": rules.HyperMask(
        name="hypermask", mask="random", delta=0.01, scale="tensor", schedule="constant", lr=10.0, temperature="gaussian"
    ),
    "whole": rules.Counter(name="counter", bits=8, delta=0.02, scale="tensor", schedule="constant"),
}
ROUNDS = 5


def benchmark(task: Task) -> str:
    """Measures both engines by two rules, on an MLP and random images of 28 × 28 pixels.

    Writes `benchmark.json` to the directory of the task, and its content to the file that `engine=auto` reads:

    - `machine`: see `machine`;
    - `products`, on a CPU: the seconds by kind, see `bnn_exp.training.precision.measure_products`;
    - `steps`: for each `rule` of `RULES` and each pair of a `hidden` size and a `batch` size, the median seconds of a step,
      `dense` and `packed`.

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
        found["steps"] = list(steps(settings, device, RULES, product(*SIZES[device.type])))
    _print(found)
    kept = measured.place(device.type)
    with writable(kept.parent, "BNN_EXP_CACHE=FOLDER where you may write"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        for file in (task.directory / "benchmark.json", kept):
            write_json(file, found)
    return f"in {task.directory}: benchmark.json\nengine=auto reads {kept}"


def steps(
    settings: Settings, device: torch.device, by: dict[str, Any], sizes: Iterable[tuple[int, int]], rounds: int = ROUNDS
) -> Iterator[dict[str, Any]]:
    """Yields the median seconds of a step of each engine, for each rule and each pair of a hidden size and a batch size.

    Args:
        by: the settings of the rules, by name.
    """
    # On one thread of a CPU, the time of the processor leaves out the time that other processes take.
    clock = "processor_median" if device.type == "cpu" and torch.get_num_threads() == 1 else "median"
    sizes = list(sizes)
    data = random_images(max(batch for _, batch in sizes), device)
    for (name, rule), (hidden, batch) in product(by.items(), sizes):
        sized = replace(
            settings,
            optimizer=rule,
            model=replace(settings.model, hidden_size=hidden),
            trainer=replace(settings.trainer, batch_size=batch),
        )
        of_engines = {engine: first_step(engine, sized, data) for engine in ENGINES}
        batches = whole_batches(data, batch)
        for step in of_engines.values():
            step(next(batches)), step(next(batches))  # on a GPU, the second step is recorded
        times = time_steps(of_engines, batches, rounds)
        yield {"rule": name, "hidden": hidden, "batch": batch, **{engine: times[engine][clock] for engine in ENGINES}}


def _print(found: dict[str, Any]) -> None:
    table = Table("rule", "hidden", "batch", title=f"a training step on {found['machine']['name']}", title_justify="left")
    for column in ("dense, ms", "packed, ms", "faster"):
        table.add_column(column, justify="right")
    for step in found["steps"]:
        times = (f"{1e3 * step[name]:.3g}" for name in ("dense", "packed"))
        faster = min(ENGINES, key=lambda name: step[name])
        table.add_row(step["rule"], str(step["hidden"]), str(step["batch"]), *times, faster)
    console().print(table)
