"""Kernels that a second process compiles ahead: it finds all kernels of a run, leaves them in the cache, and ends in time."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import plain_config, settings_of

from bnn_exp.bits.cpu.kernels.compiler import kernel, only_noted
from bnn_exp.config import installed
from bnn_exp.config.settings import REQUEST
from bnn_exp.training import ahead

PACKED = ("optimizer=counter", "device=cpu", "engine=packed", "model.hidden_size=96")


def test_a_noted_kernel_does_nothing_and_can_be_compiled_later():
    @kernel
    def add_one(x):
        x[0] += 1

    x = np.zeros(1, np.int64)
    with only_noted() as calls:
        add_one(x), add_one(x)
    assert x[0] == 0 and [called for called, _ in calls] == [add_one] and not add_one.signatures
    for called, types in calls:
        called.compile(types)
    assert len(add_one.signatures) == 1
    add_one(x)
    assert x[0] == 1 and len(add_one.signatures) == 1


@pytest.mark.parametrize(
    ("overrides", "starts"),
    [
        (PACKED, True),
        (("optimizer=counter", "device=cpu", "model=bncvl"), True),
        ((*PACKED, "engine.memory=lean"), False),
        ((*PACKED, "engine.devices=2"), False),
    ],
)
def test_only_a_run_on_an_idle_cpu_starts_a_process(overrides, starts, monkeypatch, tmp_path):
    started = []

    class Process:
        def __init__(self, command, **_):
            started.append(command[-1])
            self.stdin = io.StringIO()

    monkeypatch.setattr(ahead.subprocess, "Popen", Process)
    monkeypatch.setattr(ahead.atexit, "register", lambda *_: None)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(installed, "idle_cores", lambda: 1)
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    settings = settings_of(*overrides)
    ahead.begin(settings, {})
    assert started == [str(ahead.mark(settings))] * starts
    monkeypatch.setattr(installed, "idle_cores", lambda: 0)
    ahead.begin(settings, {})
    monkeypatch.setattr(installed, "idle_cores", lambda: 1)
    ahead.mark(settings).parent.mkdir(exist_ok=True)
    ahead.mark(settings).touch()
    ahead.begin(settings, {})
    assert len(started) == starts


def test_a_machine_that_starts_no_process_trains_without(monkeypatch, tmp_path):
    def refuses(*_, **__):
        raise BlockingIOError

    monkeypatch.setattr(ahead.subprocess, "Popen", refuses)
    monkeypatch.setattr(os, "getloadavg", refuses)
    monkeypatch.setattr(installed, "cores", lambda: 2)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    assert ahead.begin(settings_of(*PACKED), {}) is None


def test_strengths_and_sizes_need_no_other_kernels():
    one = ahead.mark(settings_of(*PACKED))
    assert one == ahead.mark(settings_of(*PACKED, "model.hidden_size=64", "delta=0.3", "seed=2"))
    assert one != ahead.mark(settings_of(*PACKED, "engine=dense"))
    assert one != ahead.mark(settings_of(*PACKED, "engine.gradient_bits=4"))


def values(*overrides: str) -> dict:
    return {key: value for key, value in plain_config(*overrides).items() if key not in REQUEST}


TRAINS = """
import sys, json
sys.path.insert(0, "TESTS")
import torch
from numba.core.dispatcher import Dispatcher
from helpers import settings_of, trainer_for

compiled, compile = [], Dispatcher.compile
Dispatcher.compile = lambda self, types: (compile(self, types), compiled.append(self))[0]
trainer = trainer_for(settings_of(*sys.argv[1:]))
trainer.evaluate()
trainer.network.train()
trainer.train_on(torch.arange(100))
kernels = [kernel for kernel in compiled if "bnn_exp" in kernel.__module__]
print(len(kernels), sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels))
""".replace("TESTS", str(Path(__file__).parents[1]))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [PACKED, (*PACKED, "optimizer=hypermask", "optimizer.mask=random")])
def test_a_run_finds_all_its_kernels_in_the_cache(rule, tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    mark = tmp_path / "folder/mark"
    command = [sys.executable, "-m", "bnn_exp.training.compile_ahead", str(mark)]
    subprocess.run(command, input=json.dumps(values(*rule)), text=True, check=True, env=environment)
    assert mark.is_file()
    done = subprocess.run([sys.executable, "-c", TRAINS, *rule], env=environment, capture_output=True, text=True, check=True)
    kernels, compiled = map(int, done.stdout.split())
    assert kernels > 10 and compiled == 0


BEGINS = """
import json, sys
from bnn_exp.config import installed
from bnn_exp.config.settings import load_settings
from bnn_exp.training import ahead

installed.idle_cores = lambda: 1
values = json.load(sys.stdin)
print(ahead.begin(load_settings(values), values).pid)
"""


@pytest.mark.slow
def test_the_second_process_ends_with_the_first(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "BNN_EXP_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", BEGINS], input=json.dumps(values(*PACKED)), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and not done.stderr
    assert not Path(f"/proc/{int(done.stdout)}").exists()
