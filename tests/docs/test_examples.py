"""Runs each program of examples/ as its first lines say, and the one of docs/."""

import json
import re
import subprocess
import sys

import pytest
from helpers import ROOT

QUICK = ("trainer.batch_size=64", "engine.threads=1", "hydra.run.dir=run")


def run(folder, name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_own_loop_learns(tmp_path):
    done = run(tmp_path, "own_loop.py")
    assert done.returncode == 0, done.stderr
    assert float(re.match(r"test accuracy ([\d.]+)%", done.stdout)[1]) > 85


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("own_rule.py", ("optimizer=patient", "optimizer.patience=2", "trainer.epochs=8", "model.hidden_size=128")),
        ("own_model.py", ("model=resmlp", "model.width=64", "trainer.epochs=12")),
    ],
)
def test_an_own_rule_and_an_own_model_learn(tmp_path, name, arguments):
    done = run(tmp_path, name, *arguments, *QUICK)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["binary_verified"] and summary["test_accuracy"] > 80


@pytest.mark.slow
def test_the_time_to_the_first_step_is_measured(tmp_path):
    command = [sys.executable, ROOT / "docs/first_step.py", "trainer=smoke", "model.hidden_size=8", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seconds = {stage: float(text) for stage, text in re.findall(r"^(.*?) {2,}([\d.]+) s$", done.stderr, re.MULTILINE)}
    assert {"import torch", "the first evaluation", "the first step"} < set(seconds)
    assert sum(seconds.values()) == pytest.approx(2 * seconds["together"], abs=0.1)
