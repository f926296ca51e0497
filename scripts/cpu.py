"""Measures steps of all rules on one thread of a CPU, beside loops of plain torch. Prints a table and writes OUT/cpu.json.

    python scripts/cpu.py dataset.path=MNIST_FOLDER         # four minutes; without the override the hub's MNIST
    python scripts/cpu.py --only counter peers bncvl --rounds 15 dataset.path=MNIST_FOLDER

All ways of a case take their turns in one process, on the same batches: a ratio is the median time of a step of the other way,
divided by the median of ours. In parentheses stands the ratio of processor time, which other processes disturb less.

The loop of an MLP trains by the same rule in plain torch, in fp32 and under bf16 autocast (`torch_loops` in
`bnn_exp/commands/benchmark/`). A CNN is compared with its float twin, also compiled. The other libraries of the case `peers`
are measured if they are installed: pip install brevitas bitorch.
"""

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf

from bnn_exp import models
from bnn_exp.cli import CONF  # its import registers all that conf/ names
from bnn_exp.commands.benchmark import peers, training_times, training_ways
from bnn_exp.commands.benchmark.machine import machine, using_threads
from bnn_exp.config import versions
from bnn_exp.config.settings import REQUEST, load_settings
from bnn_exp.training import engine
from bnn_exp.training.plan import read
from bnn_exp.training.setup import load, settle

CPU = torch.device("cpu")
WIDE = "model.hidden_size=1024 trainer.batch_size=1024"


@dataclass(frozen=True)
class Case:
    """A training that is measured: its title, its overrides, and the most rounds."""

    title: str
    overrides: str
    rounds: int = 99


RULES = ("hypermask_top", "hypermask_factored", "hypermask_ewm", "bop", "bop2", "cema", "bold", "counter_1bit", "counter_4bit")
CASES = {
    "random": Case("random δ .01, h=1024, batch 1024", f"optimizer=hypermask_random delta=0.01 real_optimizer=sgd {WIDE}"),
    "counter": Case("counter, h=1024, batch 1024", f"optimizer=counter {WIDE}"),
    "peers": Case("counter, h=256, batch 1024", "optimizer=counter model.hidden_size=256 trainer.batch_size=1024"),
    **{rule: Case(f"{rule}, h=1024, batch 1024", f"optimizer={rule} {WIDE}") for rule in RULES},
    "latent": Case("latent_adam, h=1024, batch 1024", f"model.weights=latent optimizer=latent_adam {WIDE}"),
    "large": Case(
        "random δ .1, h=1024, batch 16384",
        "optimizer=hypermask_random delta=0.1 real_optimizer=sgd model.hidden_size=1024 trainer.batch_size=16384",
        rounds=3,
    ),
    "bncvl": Case("bncvl, batch 128", "model=bncvl trainer.batch_size=128"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the cases that the command line names. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=7, help="rounds of measurement, 3 or more")
    parser.add_argument("--out", type=Path, default=Path("cpu-measured"))
    parser.add_argument("overrides", nargs="*", help="overrides of bnn-train for every case")
    given = parser.parse_intermixed_args(arguments)
    found: dict[str, Any] = {"machine": machine(CPU, 1), "cases": {}}
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"{found['machine']['name']}, one thread, torch {torch.__version__}\n")
    print(f"{_line(COLUMNS)}\n{_line(['---'] * len(COLUMNS))}")
    with using_threads(1):
        for name in given.only:
            case = CASES[name]
            found["cases"][name] = measured = measure(case, min(case.rounds, given.rounds), given.overrides)
            print(_line(row(case, measured)), flush=True)
            (given.out / "cpu.json").write_text(json.dumps(found, indent=1))
            gc.collect()
    for answer in (answer for measured in found["cases"].values() for answer in measured["answers"]):
        ratio = "" if answer["way"] == peers.PACKED else f", packed is {answer['speedup']:.1f}×"
        print(f"h=256, batch {answer['batch']}: {answer['way']} answers in {1e3 * answer['median']:.3g} ms{ratio}")
    return 0


def measure(case: Case, rounds: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Measures the steps of a case by all ways; see `training_times.measure` for the rows `ways`, ours first."""
    settings = load_settings(training_ways.held(_composed([*case.overrides.split(), *overrides]), 1))
    settle(settings, CPU)
    data = load(settings, read(settings.dataset), CPU)
    ours = engine.choose(settings, "cpu", models.kind(settings.model))
    beside = case is CASES["peers"]
    installed = [name for name in peers.named(settings) if beside and peers.is_installed(name)]
    others = training_ways.twins(settings, CPU) or (*training_ways.plain(CPU), *installed)
    ways = training_times.measure((ours, *others), settings, data, rounds)
    libraries = [way["way"] for way in ways if way["way"] in peers.LIBRARIES]
    return {"ways": ways, "answers": peers.answers(libraries, settings, data, rounds)}


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the configuration of a training on a CPU as plain values. The dataset is MNIST, unless an override names one."""
    with hydra.initialize_config_dir(str(CONF), **versions.HYDRA):
        composed = hydra.compose("config", ["dataset=mnist", "device=cpu", *overrides])
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return {key: value for key, value in values.items() if key not in REQUEST}


COLUMNS = ("step", "ours, ms", "by", "× fp32", "× bf16", "× the fastest other", "other libraries")


def row(case: Case, measured: dict[str, Any]) -> list[str]:
    """Returns the cells of a case in the table."""
    ours, *others = measured["ways"]
    libraries = [way for way in others if way["way"] in peers.LIBRARIES]
    torchs = [way for way in others if way not in libraries]
    fastest = min(torchs, key=lambda way: way["median"])
    cells = [f"{1e3 * ours['median']:.3g}", ours["way"], *(_ratio(way, ours) for way in torchs[:2])]
    named = f"{_ratio(fastest, ours)} {fastest['way'].removeprefix('torch ').removeprefix('float twin ')}"
    return [case.title, *cells, named, ", ".join(f"{_ratio(way, ours)} {way['way']}" for way in libraries)]


def _ratio(way: dict[str, Any], ours: dict[str, Any]) -> str:
    wall, busy = (way[key] / ours[key] for key in ("median", "processor_median"))
    return f"{wall:.2f} ({busy:.2f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
