"""The parts of `scripts/gpu.py`. Each part is a function that measures and yields rows of its table, column → value.

    python scripts/gpu_parts.py PART --device cuda --out FOLDER

writes the rows of one part to FOLDER/PART.json, again after each row. `gpu.py` starts this program once for each part.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import hydra
import torch
from omegaconf import OmegaConf
from torch.profiler import ProfilerActivity, profile

from bnn_exp.cli import CONF  # its import registers all that conf/ names
from bnn_exp.commands.benchmark import inference_speed, launches, training_times, training_ways
from bnn_exp.commands.benchmark.lower_bound import rates
from bnn_exp.config import versions
from bnn_exp.config.compatibility import PACKED
from bnn_exp.config.settings import REQUEST, load_settings
from bnn_exp.nn import device
from bnn_exp.records.model import save_model
from bnn_exp.training import engine
from bnn_exp.training.plan import read
from bnn_exp.training.setup import first_network, load, settle

FOR_TESTS = ("pytest", "xdist", "datasets", "pandas", "matplotlib", "jinja2")
SLOWEST = 8  # the number of kernels that a table names
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A training that is measured, by its overrides. `tiny` are the overrides that replace them on a CPU."""

    name: str
    overrides: str
    tiny: str = "dataset=digits model.hidden_size=32 trainer.batch_size=256 dataset.limit=1024"


CASES = (
    Case("MNIST h=1024 batch 1024 counter", "optimizer=counter model.hidden_size=1024 trainer.batch_size=1024"),
    Case("MNIST h=256 batch 1024 top", "model.hidden_size=256 trainer.batch_size=1024"),
    Case("MNIST h=256 batch 1024 counter", "optimizer=counter model.hidden_size=256 trainer.batch_size=1024"),
    Case(
        "MNIST h=1024 batch 16384 random δ=0.1 SGD",
        "optimizer=hypermask_random delta=0.1 real_optimizer=sgd model.hidden_size=1024 trainer.batch_size=16384",
        "dataset=digits dataset.limit=512 optimizer=hypermask_random model.hidden_size=32 trainer.batch_size=256",
    ),
    Case(
        "MNIST bncvl batch 128",
        "model=bncvl trainer.batch_size=128",
        "dataset=digits dataset.limit=256 model=bncvl model.channels=[8] model.dense=[16] trainer.batch_size=64",
    ),
    Case(
        "CIFAR-10 vgg batch 256 counter augmented",
        "dataset=cifar10 model=vgg optimizer=counter trainer.batch_size=256 dataset.augment=standard",
        "dataset=digits dataset.limit=256 model=vgg model.channels=[8] optimizer=counter trainer.batch_size=64",
    ),
)
SMALL = "dataset=digits dataset.limit=256 trainer.batch_size=64"
NETWORKS = (  # networks of the default depth, and narrow, because the width changes no count
    Case("mlp, dense", "", f"{SMALL} model.hidden_size=32"),
    Case("mlp, packed", "", f"{SMALL} model.hidden_size=32"),
    Case("bncvl, dense", "", f"{SMALL} model=bncvl model.channels=[8,8,8] model.dense=[8]"),
    Case("vgg, dense", "", f"{SMALL} model=vgg model.channels=[8,8,8]"),
)
RULES = ("hypermask_random", "hypermask_top", "counter", "bop", "bop2", "cema", "bold", "latent_adam")
RACE = "dataset=digits model.hidden_size=32 trainer.epochs=1"
GOAL = 98.0  # percent of the test samples of MNIST
RACES = (
    Case(
        "h=1024 batch 1024 counter", "optimizer=counter model.hidden_size=1024 trainer.batch_size=1024 trainer.epochs=15", RACE
    ),
    Case("h=1024 batch 512 top", "model.hidden_size=1024 trainer.batch_size=512 trainer.epochs=15", RACE),
    Case("bncvl batch 512", "model=bncvl trainer.batch_size=512 trainer.epochs=3", RACE),
)


@dataclass(frozen=True)
class Machine:
    """The device that is measured, the folder of the data, and the folder of the results."""

    device: str  # cuda or cpu
    data: str | None
    out: Path

    @property
    def torch_device(self) -> Any:
        return torch.device("cuda:0" if self.device == "cuda" else "cpu")

    def composed(self, case: Case) -> dict[str, Any]:
        """Returns the configuration of a case as plain values."""
        given = case.overrides if self.device == "cuda" else case.tiny
        dataset = next((word for word in given.split() if word.startswith("dataset=")), "dataset=mnist")
        place = f"dataset.path={self.data}/{dataset.removeprefix('dataset=')}"
        overrides = [dataset, place] if self.data and dataset != "dataset=digits" else [dataset]
        with hydra.initialize_config_dir(str(CONF), **versions.HYDRA):
            composed = hydra.compose("config", [*overrides, f"device={self.device}", *given.split()])
        values: Any = OmegaConf.to_container(composed, resolve=True)
        return {key: value for key, value in values.items() if key not in REQUEST}

    def training(self, values: dict[str, Any]) -> tuple[Any, Any]:
        """Returns the settings and the data of a configuration."""
        settings = load_settings(values)
        settle(settings, self.torch_device)
        return settings, load(settings, read(settings.dataset), self.torch_device)

    def held(self, case: Case) -> tuple[Any, Any]:
        """Returns the settings and the data of a case, without schedules."""
        return self.training(training_ways.held(self.composed(case), 8 if self.device == "cuda" else 1))

    def engines(self, settings: Any) -> tuple[str, ...]:
        """Returns the engines that can train the settings."""
        return ("dense",) if PACKED.reason_against(settings, self.device) else ("dense", "packed")


def of_machine(machine: Machine) -> Iterator[Row]:
    yield {"": "card", "value": torch.cuda.get_device_name() if machine.device == "cuda" else "none: on the CPU"}
    if machine.device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        yield {"": "driver", "value": subprocess.run(asked, capture_output=True, text=True).stdout.strip()}
    for name in ("torch", "triton", "numpy"):
        yield {"": name, "value": __import__(name).__version__ if find_spec(name) else "none"}
    yield {"": "CPU cores", "value": len(os.sched_getaffinity(0))}
    kinds = {"int8", "bfloat16"} if machine.device == "cuda" else {"float32"}
    for kind, rate in rates(kinds, machine.torch_device).items():
        shown = f"{rate / 1e12:.3g} TB/s" if kind == "bytes" else f"{rate / 1e12:.3g} · 10¹² operations/s"
        yield {"": "copy" if kind == "bytes" else f"product {kind}", "value": shown}


def of_tests(machine: Machine) -> Iterator[Row]:
    if absent := [name for name in FOR_TESTS if not find_spec(name)]:
        yield {"test": "not run", "outcome": f"missing: {', '.join(absent)}"}
        return
    file = machine.out / "tests.xml"
    tests = Path(__file__).parent.parent / "tests"
    options = f"-m pytest -q -m gpu -n 8 -o addopts= --junitxml={file} {tests}"
    if subprocess.run([sys.executable, *options.split()]).returncode and not file.exists():
        raise RuntimeError("pytest did not begin")
    suite = ET.parse(file).getroot()[0]
    failed, skipped = int(suite.get("failures", 0)) + int(suite.get("errors", 0)), int(suite.get("skipped", 0))
    passed, seconds = int(suite.get("tests", 0)) - failed - skipped, float(suite.get("time", 0))
    yield {"test": "all", "outcome": f"{passed} passed, {failed} failed, {skipped} skipped, {seconds:.0f} s"}
    for test in suite.iter("testcase"):
        for outcome in (*test.iter("failure"), *test.iter("error")):
            yield {"test": test.get("name"), "outcome": outcome.get("message", "").split("\n")[0][:300]}


def each(machine: Machine, cases: Sequence[Case], measure: Callable[[Machine, Case], Iterator[Row]]) -> Iterator[Row]:
    """Yields the rows that `measure` yields for each case. A case that fails gets a row with its error.

    Raises:
        RuntimeError: after the last case, if a case has failed.
    """
    failed = []
    for case in cases:
        try:
            yield from measure(machine, case)
        except Exception as error:
            traceback.print_exc()
            failed.append(case.name)
            yield {"failed": case.name, "error": shortened(error)}
        gc.collect()
        if machine.device == "cuda":
            torch.cuda.empty_cache()
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def shortened(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


def of_epochs(machine: Machine) -> Iterator[Row]:
    """Milliseconds of an epoch: the median step times the number of steps, all ways in turn on the same batches."""
    yield from each(machine, CASES, _epoch)


def _epoch(machine: Machine, case: Case) -> Iterator[Row]:
    settings, data = machine.held(case)
    names = (*machine.engines(settings), *training_ways.plain(machine.torch_device))
    row: Row = {"epoch, ms": case.name, "auto is": engine.choose(settings, str(machine.torch_device))}

    def measured(*names: str) -> Row:
        times = training_times.measure(names, settings, data, rounds=9 if machine.device == "cuda" else 3)
        return {one["way"]: 1e3 * one["seconds_per_epoch"] for one in times}

    try:
        row |= measured(*names)
    except Exception:  # one of the ways has failed: each is measured alone
        traceback.print_exc()
        for name in names:
            try:
                row |= measured(name)
            except Exception as error:
                row[name] = shortened(error)
    yield row


def of_runs(machine: Machine) -> Iterator[Row]:
    """Milliseconds of `Trainer.epoch`: what a run takes, with the permutation and the metrics. The median of three epochs."""
    yield from each(machine, CASES, _run)


def _run(machine: Machine, case: Case) -> Iterator[Row]:
    settings, data = machine.held(case)
    row: Row = {"epoch of a run, ms": case.name}
    for name in machine.engines(settings):
        trainer = training_ways.trainer(name, settings, data)
        trainer.epoch()
        row[name] = 1e3 * median(trainer.epoch()["train_seconds"] for _ in range(3))
    yield row


def of_kernels(machine: Machine) -> Iterator[Row]:
    """The slowest kernels of one step of each engine, and all together. On a CPU: torch's operators."""
    yield from each(machine, CASES, _kernels)


def _kernels(machine: Machine, case: Case) -> Iterator[Row]:
    settings, data = machine.held(case)
    kind = ProfilerActivity.CUDA if machine.device == "cuda" else ProfilerActivity.CPU
    for name in machine.engines(settings):
        trainer = training_ways.trainer(name, settings, data)
        batches = training_times.whole_batches(data, training_times.batch_size(settings, data))
        for rows in islice(batches, 4):  # the second step is recorded as a CUDA graph, later ones replay it
            trainer.train_on(rows)
        with profile(activities=[kind]) as found:
            trainer.train_on(next(batches))
            if machine.device == "cuda":
                torch.cuda.synchronize()
        events = [
            (e.self_device_time_total if machine.device == "cuda" else e.self_cpu_time_total, e.count, e.key)
            for e in found.key_averages()
            if e.device_type.name == kind.name and not e.is_user_annotation
        ]
        step: Row = {"step": f"{case.name}, {name}"}
        yield step | {"kernel": "all", "µs": sum(e[0] for e in events), "times": sum(e[1] for e in events)}
        for took, count, kernel in sorted(events, reverse=True)[:SLOWEST]:
            yield step | {"kernel": kernel[:60], "µs": took, "times": count}


def of_accuracy(machine: Machine) -> Iterator[Row]:
    """Seconds of training, without evaluation, to an accuracy: in a new process, and again when all is compiled."""
    yield from each(machine, RACES, _race)


def _race(machine: Machine, case: Case) -> Iterator[Row]:
    for again in (False, True):
        settings, data = machine.training(machine.composed(case))
        chosen = engine.choose(settings, str(machine.torch_device))
        trainer, seconds, accuracy = training_ways.trainer(chosen, settings, data), 0.0, 0.0
        while accuracy < GOAL and trainer.progress.epoch < settings.trainer.epochs:
            seconds += trainer.epoch()["train_seconds"]
            accuracy = trainer.evaluate()[0]["test_accuracy"]
        times = {"s": seconds, "epochs": trainer.progress.epoch, "test %": accuracy, "reached": accuracy >= GOAL}
        yield {f"to {GOAL:g}%": case.name + ", compiled before" * again, "engine": chosen} | times


def of_inference(machine: Machine) -> Iterator[Row]:
    """Microseconds of a batch of a packed network beside torch, and of single layers."""
    case = Case("784-4096³-10", "model.hidden_size=4096 model.num_layers=4")
    settings, data = machine.held(case)
    tiny: dict[str, Any] = {}
    if machine.device == "cpu":
        inference_speed.LAYERS = ((64, 64, 1),)
        tiny = {"batches": (1, 4), "rounds": 3}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_model(file, first_network(settings, data), machine.composed(case), data.image_shape, data.classes)
        found = inference_speed.measure(file, machine.torch_device, say=print, **tiny)
    rows: dict[tuple[str, int], Row] = {}
    for one in found["network"] + found["layers"]:
        what = f"{one['inputs']} → {one['outputs']}" if "inputs" in one else case.name
        row = rows.setdefault((what, one["batch"]), {"batch, µs": what, "batch": one["batch"]})
        row[one["way"]] = 1e6 * one["median"]
    yield from rows.values()


def of_counts(machine: Machine) -> Iterator[Row]:
    """The launches of a step of each model, engine and rule: counted on the CPU, where the step takes the way of a GPU."""
    yield from each(Machine("cpu", machine.data, machine.out), NETWORKS, _count)


def _count(machine: Machine, network: Case) -> Iterator[Row]:
    row: Row = {"launches of a step": network.name}
    for rule in RULES:
        settings, data = machine.held(replace(network, tiny=f"{network.tiny} optimizer={rule}"))
        name = network.name.split()[-1]
        if name in machine.engines(settings):
            with patch.object(device, "on_host", lambda where: False):
                row[rule] = sum(launches.of_step(training_ways.trainer(name, settings, data)).values())
    yield row


PARTS = {
    "machine": of_machine,
    "tests": of_tests,
    "epochs": of_epochs,
    "runs": of_runs,
    "inference": of_inference,
    "accuracy": of_accuracy,
    "kernels": of_kernels,
    "counts": of_counts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = []
    for row in PARTS[given.part](Machine(given.device, given.data, given.out)):
        rows.append(row)
        (given.out / f"{given.part}.json").write_text(json.dumps(rows))
        print(row, flush=True)


if __name__ == "__main__":
    main()
