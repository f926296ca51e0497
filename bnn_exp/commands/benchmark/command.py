"""`task=benchmark benchmark=training`: what the command does, from the configuration to `benchmark.json`."""

import torch
from rich.table import Table

from bnn_exp import models
from bnn_exp.commands.benchmark import memory, reference_program, times, ways
from bnn_exp.commands.benchmark.floor import floor
from bnn_exp.commands.benchmark.machine import machine, using_threads
from bnn_exp.commands.benchmark.plot import training_plot
from bnn_exp.commands.tasks import Asked
from bnn_exp.config import compatibility
from bnn_exp.config.settings import Training, load_settings
from bnn_exp.records import next_command
from bnn_exp.records.files import write_json
from bnn_exp.records.formatting import bytes_in_words, console
from bnn_exp.records.runs import own_overrides
from bnn_exp.records.terminal import progress
from bnn_exp.training import engine
from bnn_exp.training.plan import Plan, make_plan
from bnn_exp.training.setup import first_network, load, settle


def benchmark(asked: Asked) -> str:
    """Speed and memory of training the configuration by its engine, and by the dense one where that is another, beside loops of
    plain torch and, where its path is given, the seed's program.

    All have the same threads, and the strength at which a run begins. `benchmark.json` holds

    - `machine`;
    - `training`: `engine`, `batch`, and the `config` that was measured;
    - `ways`: see `times.measure`, each with `speedup`, that of the configuration over it;
    - `floor`: what an epoch has to do at the least, see `floor.floor`, and `times`, how many times its seconds ours takes;
    - `seed`: see `seed.beside`, or null;
    - `memory`: by way, see `memory.measure`; null where the system does not tell;
    - `speedup_over_dense_torch` (in fp32), `speedup_over_seed` (or null), `memory_saved_over_adam` (a fraction, or null).

    Raises:
        UserError: the configuration can't be trained or measured, or the seed's program fails.
    """
    compatibility.check_measured(load_settings(asked.composed), asked.request)
    found = _measured(make_plan(asked.composed, []), asked.request.benchmark)
    write_json(asked.directory / "benchmark.json", found)
    training_plot(asked.directory / "benchmark.png", found)
    _say(found)
    kept = [item for item in own_overrides(asked.overrides) if not item.startswith("benchmark")]
    said = f"in {asked.directory}: benchmark.json, benchmark.png"
    return f"{said}\n{next_command.line([*asked.flags, *kept], 'the training that was measured')}"


def _measured(plan: Plan, wanted: Training) -> dict:
    """The content of `benchmark.json`."""
    device, threads = torch.device(plan.device), plan.settings.engine.threads or torch.get_num_threads()
    values = ways.held(plan.config, threads)
    settings = load_settings(values)
    chosen = engine.choose(settings, device.type, models.kind(settings.model))
    with using_threads(threads):
        program = wanted.reference_program and reference_program.SeedProgram.of(
            wanted.reference_program, settings, plan.arrays, device
        )
        settle(settings, device)
        data, rows = load(settings, plan.arrays, device), len(plan.arrays.train_labels)
        beside = reference_program.beside(program, ways.trainer(chosen, settings, data), rows) if program else None
        names = tuple(dict.fromkeys((chosen, "dense", *ways.plain(device))))
        measured = times.measure(names, settings, data, wanted.rounds)
        sizes = times.batch_size(settings, data), times.rows_of_epoch(settings, data)
        least = floor(first_network(settings, data).to(device), data, *sizes, chosen)
    weighed, sizes = dict.fromkeys((chosen, *ways.plain(device), ways.ADAM)), {}
    with progress("processes whose memory is measured", memory.PROCESSES * len(weighed)) as done:
        for name in weighed:
            sizes[name] = memory.measure(name, values, plan.device, done)
    ours = measured[0]["median"]
    for row in measured:
        row["speedup"] = row["median"] / ours
    known = all(sizes.values())
    return {
        "machine": machine(device, threads),
        "training": {"engine": chosen, "batch": times.batch_size(settings, data), "config": values},
        "ways": measured,
        "floor": least | {"times": measured[0]["seconds_per_epoch"] / least["seconds"]},
        "seed": beside,
        "memory": sizes if known else None,
        "speedup_over_dense_torch": next(row["speedup"] for row in measured if row["way"] == ways.FP32),
        "speedup_over_seed": beside and beside["speedup"],
        "memory_saved_over_adam": 1 - sizes[chosen]["peak_bytes"] / sizes[ways.ADAM]["peak_bytes"] if known else None,
    }


def _say(found: dict) -> None:
    """The tables on the console."""
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
    least = found["floor"]
    moved = f" and {bytes_in_words(least['bytes'])} moved" if least["bytes"] else ""
    console().print(
        f"an epoch is {least['operations'] / 1e9:,.0f} billion operations{moved}: {least['seconds']:.3g} s at the rates of "
        f"torch's products here; {training['engine']} takes {least['times']:.2g} times that"
    )
    if beside := found["seed"]:
        seconds = {
            who: f"{beside[who]['median']:.3g} s ({beside[who]['low']:.3g} to {beside[who]['high']:.3g})"
            for who in ("seed", "ours")
        }
        console().print(
            f"an epoch of the seed's program (batch {beside['batch']}) {seconds['seed']}, ours {seconds['ours']}: "
            f"{beside['speedup']:.1f}× the images/s"
        )
    if found["memory"]:
        table = Table("way", title="memory, at the peak of building and of three steps", title_justify="left")
        for column in ("built", "peak", "least to greatest", "process"):
            table.add_column(column, justify="right")
        for name, sizes in found["memory"].items():
            built, peak, total = (bytes_in_words(sizes[key]) for key in ("built", "peak_bytes", "total_bytes"))
            least, greatest = (bytes_in_words(sizes["peaks"][i]) for i in (0, -1))
            table.add_row(name, built, peak, f"{least} to {greatest}", total)
        console().print(table)
        saved = found["memory_saved_over_adam"]
        console().print(f"{100 * saved:.1f}% less than {ways.ADAM}" if saved > 0 else f"no less than {ways.ADAM}")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"
