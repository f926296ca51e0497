"""Tests callbacks: the order of calls, the numbers they add, their state over a resume, and exceptions that name their line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

from bnn_exp.training import callbacks
from bnn_exp.training.callbacks import Callback, CallbackFailed, register_callback

SMALL = ("trainer=smoke", "model.hidden_size=8", "trainer.limit_batches=3", "trainer.epochs=3", "hydra.run.dir=run")


@pytest.fixture(autouse=True)
def _none_is_left(monkeypatch, forget):
    monkeypatch.setattr(callbacks, "CALLBACKS", [])


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Diary(Callback):
    """A callback that records its calls. Its state is the number of steps."""

    entries: list = []  # noqa: RUF012  all objects of the class share it

    def __init__(self):
        self.steps = 0

    def on_start(self, trainer, directory):
        self.entries.append(("start", directory.name, trainer.progress.epoch))

    def on_step(self, trainer, loss):
        assert loss.shape == () and trainer.progress.batch > 0
        self.steps += 1

    def on_epoch(self, trainer, metrics):
        self.entries.append(("epoch", metrics["epoch"], self.steps))
        metrics["test_accuracy"] = 101  # `metrics` is a copy, so this has no effect
        return {"steps": self.steps, "first": torch.tensor(1.5), "rows": {"layers.0.weight": 2}, "none": float("nan")}

    def on_end(self, trainer, summary):
        self.entries.append(("end", summary["status"], self.steps))

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


@pytest.mark.parametrize("options", [(), ("engine=packed",), ("engine.memory=lean",)])
def test_a_callback_is_called_in_order_and_its_numbers_are_logged(bnn_train, options):
    Diary.entries.clear()
    register_callback(Diary)
    done = bnn_train(*SMALL, *options)
    (run,) = done.runs
    found = lines(run)
    each = found[0]["steps"]
    assert done.code == 0 and each > 1
    epochs = [("epoch", e, e * each) for e in (1, 2, 3)]
    assert Diary.entries == [("start", "run", 0), *epochs, ("end", "completed", 3 * each)]
    assert [m["steps"] for m in found] == [each, 2 * each, 3 * each] and all(m["test_accuracy"] <= 100 for m in found)
    assert found[0]["first"] == 1.5 and found[0]["rows"] == {"layers.0.weight": 2} and found[0]["none"] is None
    assert ">steps<" in (run / "report.html").read_text()


def test_each_run_of_a_sweep_has_an_object_of_its_own(bnn_train):
    register_callback(Diary())
    done = bnn_train("-m", *SMALL[:3], "trainer.epochs=1", "seed=0,1")
    assert done.code == 0 and len({lines(run)[0]["steps"] for run in done.runs}) == 1


def test_a_run_without_callbacks_is_bit_for_bit_the_same(bnn_train, summary):
    one = bnn_train(*SMALL)
    register_callback(Diary)
    two = bnn_train(*SMALL[:-1], "hydra.run.dir=other")
    assert one.code == two.code == 0
    assert len({summary(run)["bits_sha256"] for run in two.runs}) == 1 and len(two.runs) == 2


class Failing(Diary):
    """A callback that fails in the method and at the number that `at` names."""

    at: tuple[str, int] | None = None

    def on_step(self, trainer, loss):
        super().on_step(trainer, loss)
        if self.at == ("step", self.steps):
            raise ZeroDivisionError("of the test")

    def on_epoch(self, trainer, metrics):
        if self.at == ("epoch", metrics["epoch"]):
            torch.zeros(2).view(3)
        return super().on_epoch(trainer, metrics)

    def on_end(self, trainer, summary):
        if self.at == ("end", 0):
            raise ZeroDivisionError("of the test")


@pytest.mark.parametrize(("at", "said"), [
    (("step", 4), r"test_callbacks:Failing\.on_step in epoch 2: ZeroDivisionError: of the test"),
    pytest.param(
        ("epoch", 2), r"test_callbacks:Failing\.on_epoch after epoch 2: RuntimeError: shape '\[3\]'", marks=pytest.mark.slow
    ),
    pytest.param(("end", 0), r"test_callbacks:Failing\.on_end after epoch 3: ZeroDivisionError", marks=pytest.mark.slow),
])  # fmt: skip
def test_an_error_ends_the_run_and_a_resume_goes_on(bnn_train, summary, monkeypatch, at, said):
    register_callback(Failing)
    whole = bnn_train(*SMALL[:-1], "hydra.run.dir=whole")
    monkeypatch.setattr(Failing, "at", at)
    done = bnn_train(*SMALL)
    result = summary("run")
    assert done.code == 1 and result["status"] == "failed" and re.search(said, done.err) and re.search(said, result["error"])
    assert re.search(r"test_callbacks\.py, line \d+\)", done.err) and "Traceback" in Path("run/train.log").read_text()
    monkeypatch.setattr(Failing, "at", None)
    again = bnn_train("resume=run")
    assert whole.code == again.code == 0 and summary("run")["bits_sha256"] == summary("whole")["bits_sha256"]
    kept = [[(m["steps"], m["flips"]) for m in lines(run)] for run in again.runs]
    assert len(kept[0]) == 3 and kept[0] == kept[1]


@pytest.mark.parametrize(("returned", "said"), [
    (3, "returned 3: must be a dict"),
    ({"a": "x"}, "returned a='x': must be a number"),
    ({"a": torch.zeros(2)}, "returned a: "),
    ({"test_accuracy": 3.0}, "returned the name 'test_accuracy': the metrics have this name already"),
    ({"a": {"b": None}}, "returned a/b=None"),
])  # fmt: skip
def test_what_is_no_number_is_refused(bnn_train, returned, said):
    class Wrong(Callback):
        def on_epoch(self, trainer, metrics):
            return returned

    register_callback(Wrong)
    done = bnn_train(*SMALL)
    assert done.code == 1 and said in done.err and "Wrong" in done.err


@pytest.mark.parametrize("state", [{"a": [object()]}, np.float64(1), {"g": torch.Generator()}, {(1, Callback): 2}])
def test_a_state_that_no_checkpoint_can_keep_is_refused(state):
    class Wrong(Callback):
        def state_dict(self):
            return state

    register_callback(Wrong)
    with pytest.raises(CallbackFailed, match=r"Wrong\.state_dict holds .*: no checkpoint can keep it\nallowed: tensors"):
        callbacks.Callbacks().state()


def test_a_callback_sets_the_strength(bnn_train):
    class Halving(Callback):
        def on_epoch(self, trainer, metrics):
            trainer.binary.param_groups[0]["lr"] = 0.1 / 2 ** metrics["epoch"]

    register_callback(Halving)
    done = bnn_train(*SMALL, "delta=0.1")
    assert done.code == 0 and [m["delta"] for m in lines(done.runs[0])][1:] == [0.05, 0.025]


def test_only_callbacks_are_registered():
    for wrong in (print, object(), int):
        with pytest.raises(TypeError, match="Callback"):
            register_callback(wrong)
    assert register_callback(Diary) is register_callback(Diary) and [Diary] == callbacks.CALLBACKS
    anew = type("Diary", (Callback,), {"__module__": Diary.__module__})  # a notebook cell that runs again
    assert [register_callback(anew)] == callbacks.CALLBACKS
    register_callback(Diary())
    register_callback(Diary())
    assert len(callbacks.CALLBACKS) == 3


def test_the_page_on_callbacks_is_a_program_that_runs(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/callbacks.md").read_text(), re.DOTALL)
    (tmp_path / "watch.py").write_text(program)
    command = [sys.executable, "watch.py", *SMALL]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path / "run")
    assert all(m["greatest_loss"] >= m["train_loss"] for m in found) and set(found[0]["ones_of"]) == set(found[0]["ones"])
