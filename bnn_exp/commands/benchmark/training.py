"""`benchmark=training`: measures the speed and memory of a training beside plain torch, then prints and writes the results."""

from typing import Any

import torch
from rich.table import Table

from bnn_exp import models
from bnn_exp.commands.benchmark import peers, reference_program, training_memory, training_times, training_ways
from bnn_exp.commands.benchmark.lower_bound import lower_bound
from bnn_exp.commands.benchmark.machine import machine, using_threads
from bnn_exp.commands.benchmark.training_plot import training_plot
from bnn_exp.commands.task import Task
from bnn_exp.config.compatibility import check_measured
from bnn_exp.config.settings import load_settings
from bnn_exp.records import next_command
from bnn_exp.records.files import write_json
from bnn_exp.records.formatting import bytes_in_words
from bnn_exp.records.runs import own_overrides
from bnn_exp.records.terminal import console, progress
from bnn_exp.training import engine
from bnn_exp.training.plan import Plan, make_plan
from bnn_exp.training.setup import first_network, load, settle


def benchmark(task: Task) -> str:
    """Measures the training that the configuration describes, by its engine, by the dense engine, and by loops of plain torch.

    The reference program is measured too if its path is given. All ways train with equal numbers of threads, and with the
    strength (such as δ) at which a run begins. The file `benchmark.json` holds

    - `machine`: see `machine`;
    - `training`: the `engine`, the `batch`, and the `config` that was measured;
    - `ways`: see `training_times.measure`, with `speedup`: the seconds of a way divided by the seconds of the engine;
    - `answers`: the times of untrained networks beside other libraries, see `peers.answers`;
    - `absent`: the libraries of binary networks that are not installed;
    - `floor`: the least work of an epoch, see `lower_bound`, with `times`: the engine's seconds divided by the least seconds;
    - `seed`: the figures of the reference program, see `reference_program.compare`, or null;
    - `memory`: for each way, see `training_memory.measure`; null if the system does not report memory;
    - `speedup_over_dense_torch` (fp32), `speedup_over_float_twin` (the fastest twin; null without), `speedup_over_seed` (or
      null), `memory_saved_over_adam` (a fraction, or null).

    Raises:
        UserError: the configuration can't be trained or measured, or the reference program fails.
    """
    check_measured(load_settings(task.composed), task.request)
    found = _measure(make_plan(task.composed, []), task.request.benchmark)
    write_json(task.directory / "benchmark.json", found)
    training_plot(task.directory / "benchmark.png", found)
    _print(found)
    kept = [item for item in own_overrides(task.overrides) if not item.startswith("benchmark")]
    following = next_command.line([*task.flags, *kept], "the training that was measured")
    return f"in {task.directory}: benchmark.json, benchmark.png\n{following}"


def _measure(plan: Plan, wanted: Any) -> dict[str, Any]:
    """Measures the training in `plan` and returns the content of `benchmark.json`. `wanted` is the setting `benchmark`."""
    device, threads = torch.device(plan.device), plan.settings.engine.threads or torch.get_num_threads()
    values = training_ways.held(plan.config, threads)
    settings = load_settings(values)
    chosen = engine.choose(settings, device.type, models.kind(settings.model))
    with using_threads(threads):
        program = wanted.reference_program and reference_program.ReferenceProgram.of(
            wanted.reference_program, settings, plan.arrays, device
        )
        settle(settings, device)
        data, rows = load(settings, plan.arrays, device), len(plan.arrays.train_labels)
        batch, images = training_times.batch_size(settings, data), training_times.rows_of_epoch(settings, data)
        own = training_ways.trainer(chosen, settings, data) if program else None
        compared = reference_program.compare(program, own, rows) if program else None
        twins = training_ways.twins(settings, device)
        others = *training_ways.plain(device), *training_ways.compiled(settings, device), *training_ways.usual(settings)
        names = tuple(dict.fromkeys((chosen, "dense", *others, *twins)))
        ways = training_times.measure(names, settings, data, wanted.rounds)
        libraries = [row["way"] for row in ways if row["way"] in peers.LIBRARIES]
        answers = peers.answers(libraries, settings, data, wanted.rounds) if device.type == "cpu" else []
        least = lower_bound(first_network(settings, data).to(device), data, batch, images, chosen)
    for row in ways:
        row["speedup"] = row["median"] / ways[0]["median"]
    measured = training_ways.plain(device) if device.type == "cuda" else (training_ways.FP32,)
    sizes = _memory((chosen, *measured, training_ways.ADAM), values, plan.device)
    return {
        "machine": machine(device, threads),
        "training": {"engine": chosen, "batch": batch, "config": values},
        "ways": ways,
        "answers": answers,
        "absent": [name for name in peers.named(settings) if not peers.is_installed(name)],
        "floor": least | {"times": ways[0]["seconds_per_epoch"] / least["seconds"]},
        "seed": compared,
        "memory": sizes,
        "speedup_over_dense_torch": next(row["speedup"] for row in ways if row["way"] == training_ways.FP32),
        "speedup_over_float_twin": min((row["speedup"] for row in ways if row["way"] in twins), default=None),
        "speedup_over_seed": compared and compared["speedup"],
        "memory_saved_over_adam": sizes and 1 - sizes[chosen]["peak_bytes"] / sizes[training_ways.ADAM]["peak_bytes"],
    }


def _memory(names: tuple[str, ...], values: dict, device: str) -> dict[str, dict] | None:
    names = tuple(dict.fromkeys(names))
    with progress("processes whose memory is measured", training_memory.PROCESSES * len(names)) as done:
        sizes = {name: training_memory.measure(name, values, device, done) for name in names}
    return sizes if all(sizes.values()) else None


def _print(found: dict[str, Any]) -> None:
    _print_speeds(found)
    least, engine_name = found["floor"], found["training"]["engine"]
    moved = f" and {bytes_in_words(least['bytes'])} moved by {least['kernels']:,.0f} kernels" if least["bytes"] else ""
    console().print(
        f"an epoch is {least['operations'] / 1e9:,.0f} billion operations{moved}: {least['seconds']:.3g} s at the rates of "
        f"torch's products here; {engine_name} takes {least['times']:.2g} times that"
    )
    if compared := found["seed"]:
        reference, ours = (
            f"{times['median']:.3g} s ({times['low']:.3g} to {times['high']:.3g})"
            for times in (compared["seed"], compared["ours"])
        )
        console().print(
            f"an epoch of the reference program (batch {compared['batch']}) takes {reference}, ours {ours}: "
            f"{compared['speedup']:.1f}× the images/s"
        )
    if found["answers"]:
        _print_answers(found["answers"])
    if found["absent"]:
        console().print(f"not installed, and so not measured: {', '.join(found['absent'])}")
    if found["memory"]:
        _print_memory(found["memory"], found["memory_saved_over_adam"])


def _print_speeds(found: dict[str, Any]) -> None:
    where, training = found["machine"], found["training"]
    threads = f", {where['threads']} thread{'s' * (where['threads'] > 1)}" if where["device"] == "cpu" else ""
    table = Table("way", title=f"training, batch {training['batch']}, on {where['name']}{threads}", title_justify="left")
    for column in ("step, ms", "quartiles, ms", "processor, ms", "images/s", "s/epoch", f"{training['engine']} is"):
        table.add_column(column, justify="right")
    for i, row in enumerate(found["ways"]):
        low, median, high, busy = (_milliseconds(row[key]) for key in ("low", "median", "high", "processor_median"))
        speeds = f"{row['images_per_second']:,.0f}", f"{row['seconds_per_epoch']:.3g}", f"{row['speedup']:.2f}×" if i else ""
        table.add_row(row["way"], median, f"{low} to {high}", busy, *speeds)
    console().print(table)


def _print_answers(rows: list[dict[str, Any]]) -> None:
    table = Table("batch", "way", title="an answer of an untrained network", title_justify="left")
    for column in ("median, ms", "quartiles, ms", "packed is"):
        table.add_column(column, justify="right")
    for row in rows:
        low, median, high = (f"{1e3 * row[key]:.3g}" for key in ("low", "median", "high"))
        faster = "" if row["way"] == peers.PACKED else f"{row['speedup']:.1f}×"
        table.add_row(str(row["batch"]), row["way"], median, f"{low} to {high}", faster)
    console().print(table)


def _print_memory(memory: dict[str, dict], saved: float) -> None:
    table = Table("way", title="memory, at the peak of building and of three steps", title_justify="left")
    for column in ("built", "peak", "least to greatest", "process"):
        table.add_column(column, justify="right")
    for name, sizes in memory.items():
        built, peak, total = (bytes_in_words(sizes[key]) for key in ("built", "peak_bytes", "total_bytes"))
        least, greatest = (bytes_in_words(sizes["peaks"][i]) for i in (0, -1))
        table.add_row(name, built, peak, f"{least} to {greatest}", total)
    console().print(table)
    adam = training_ways.ADAM
    console().print(f"{100 * saved:.1f}% less than {adam}" if saved > 0 else f"no less than {adam}")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"
