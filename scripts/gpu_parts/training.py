"""The parts that train: epochs in turns, epochs of a run, kernels of a step, seconds to an accuracy, counted launches."""

import json
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from statistics import median
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from bnn_exp.commands.benchmark import launches, training_times, training_ways
from bnn_exp.nn import device
from bnn_exp.training import engine, setup
from gpu_parts.cases import CASES, Case, Machine, Row, each, shortened

SLOWEST = 8  # the number of kernels that a table names
RACE = "dataset=digits model.hidden_size=32 trainer.epochs=1"
GOAL = 98.0  # percent of the test samples of MNIST
RACES = (
    Case("bncvl batch 256, one epoch", "model=bncvl trainer.batch_size=256 trainer.epochs=1", RACE),
    Case("bncvl batch 512, one epoch", "model=bncvl trainer.batch_size=512 trainer.epochs=1", RACE),
    Case("h=1024 batch 512 counter", "optimizer=counter model.hidden_size=1024 trainer.batch_size=512", RACE),
)
SMALL = "dataset=digits dataset.limit=256 trainer.batch_size=64"
NETWORKS = (  # networks of the default depth, and narrow, because the width changes no count
    Case("mlp, dense", "", f"{SMALL} model.hidden_size=32"),
    Case("mlp, packed", "", f"{SMALL} model.hidden_size=32"),
    Case("bncvl, dense", "", f"{SMALL} model=bncvl model.channels=[8,8,8] model.dense=[8]"),
    Case("vgg, dense", "", f"{SMALL} model=vgg model.channels=[8,8,8]"),
)
RULES = ("hypermask_random", "hypermask_top", "counter", "bop", "bop2", "cema", "bold", "latent_adam")


def of_epochs(machine: Machine) -> Iterator[Row]:
    """Yields the milliseconds of an epoch: the median step times the number of steps, all ways in turn on the same batches."""
    yield from each(machine, CASES, _epoch)


def _epoch(machine: Machine, case: Case) -> Iterator[Row]:
    settings, data = machine.held(case)
    names = (*machine.engines(settings), *training_ways.plain(machine.torch_device))
    row: Row = {"epoch, ms": case.name}

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
    yield row | {"auto is": engine.choose(settings, str(machine.torch_device))}


def of_runs(machine: Machine) -> Iterator[Row]:
    """Yields the milliseconds of `Trainer.epoch`, with the permutation and the metrics: the median of three epochs."""
    yield from each(machine, CASES, _run)


def _run(machine: Machine, case: Case) -> Iterator[Row]:
    settings, data = machine.held(case)
    row: Row = {"epoch of a run, ms": case.name}
    for name in machine.engines(settings):
        trainer = training_ways.trainer(name, settings, data)
        trainer.epoch()
        row[name] = 1e3 * median(trainer.epoch()["train_seconds"] for _ in range(3))
    yield row


def of_engines(machine: Machine) -> Iterator[Row]:
    """Yields the milliseconds of a step of both engines at several sizes. The command also keeps these for `engine=auto`."""
    folder = machine.out / "engines"
    command = f"-m bnn_exp task=benchmark benchmark=machine device={machine.device}".split()
    subprocess.run([sys.executable, *command, f"hydra.run.dir={folder}"], check=True)
    for step in json.loads((folder / "benchmark.json").read_text())["steps"]:
        times = {name: 1e3 * step[name] for name in ("dense", "packed")}
        yield {"step, ms": f"h={step['hidden']}, batch {step['batch']}, {step['rule']}"} | times


def of_kernels(machine: Machine) -> Iterator[Row]:
    """Yields the time of all kernels in a step of each engine, then the slowest kernels; on a CPU torch's operators."""
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
            if e.device_type.name == kind.name and not getattr(e, "is_user_annotation", False)
        ]
        step: Row = {"step": f"{case.name}, {name}"}
        yield step | {"kernel": "all", "µs": sum(e[0] for e in events), "times": sum(e[1] for e in events)}
        for took, count, kernel in sorted(events, reverse=True)[:SLOWEST]:
            yield step | {"kernel": kernel[:60], "µs": took, "times": count}


def of_accuracy(machine: Machine) -> Iterator[Row]:
    """Yields the seconds of training, without evaluation, to an accuracy, as a run counts them; then those of a second run."""
    yield from each(machine, RACES, _race)


def _race(machine: Machine, case: Case) -> Iterator[Row]:
    for again in (False, True):
        settings, data = machine.training(machine.composed(case))
        chosen = engine.choose(settings, str(machine.torch_device))
        if machine.device == "cuda":
            setup.warm_up(settings, setup.network_to_train(settings, data).to(machine.torch_device), data)
        trainer, seconds, accuracy = training_ways.trainer(chosen, settings, data), 0.0, 0.0
        while accuracy < GOAL and trainer.progress.epoch < settings.trainer.epochs:
            seconds += trainer.epoch()["train_seconds"]
            accuracy = trainer.evaluate()[0]["test_accuracy"]
        times = {"s": seconds, "epochs": trainer.progress.epoch, "test %": accuracy, "reached": accuracy >= GOAL}
        yield {f"to {GOAL:g}%": case.name + ", again" * again, "engine": chosen} | times


def of_counts(machine: Machine) -> Iterator[Row]:
    """Yields the launches of a step of each model, engine and rule, counted on the CPU; see `launches`."""
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
