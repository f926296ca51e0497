"""Tests CPU threads: how they wait, and that a resumed run keeps their number if its bits depend on the number."""

import os
import subprocess
import sys

import pytest
import torch

from bnn_exp.records import checkpoint
from bnn_exp.training import engine

SMALL = ("trainer=smoke", "trainer.epochs=1", "model.hidden_size=8")


@pytest.mark.slow
def test_the_command_has_threads_sleep_before_torch_is_loaded(tmp_path):
    code = (
        "import os, sys; from bnn_exp import cli; from bnn_exp.training import plan; seen = []\n"
        "known = plan.device_of\n"
        "look = lambda: seen.append(('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY')))\n"
        "plan.device_of = lambda *asked: look() or known(*asked)\n"
        "sys.argv = ['bnn-train', 'trainer=smoke', 'trainer.epochs=1', 'model.hidden_size=8', 'engine=dense']\n"
        "cli.main(); sys.exit(seen != [(False, 'PASSIVE')])"
    )
    given = {name: value for name, value in os.environ.items() if name != engine.WAITING}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=given, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def threads():
    """Restores the number of threads after the test. Yields the number before it."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def stopped(bnn_train, tmp_path, *overrides: str):
    """Makes a run of three threads that looks as if it was killed after its last epoch."""
    torch.set_num_threads(3)
    assert bnn_train(*SMALL, *overrides, "hydra.run.dir=run").code == 0
    (tmp_path / "run" / "summary.json").unlink()
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["threads"] == 3
    torch.set_num_threads(1)


@pytest.mark.parametrize("engine_, expected", [("dense", 3), ("packed", 1)])
def test_a_dense_run_goes_on_with_the_threads_that_it_had(bnn_train, summary, tmp_path, threads, engine_, expected):
    stopped(bnn_train, tmp_path, f"engine={engine_}")
    assert bnn_train("resume=run").code == 0
    assert summary(tmp_path / "run")["threads"] == expected  # the bits of the packed engine do not depend on the number
    assert torch.get_num_threads() == 1  # the run has restored the number of this process


def test_a_number_that_is_said_wins(bnn_train, summary, tmp_path, threads):
    stopped(bnn_train, tmp_path, "engine=dense", "engine.threads=3")
    assert bnn_train("resume=run").code == 0 and summary(tmp_path / "run")["threads"] == 3


def test_a_checkpoint_of_an_earlier_version_goes_on(bnn_train, summary, tmp_path, threads):
    stopped(bnn_train, tmp_path, "engine=dense")
    for name in ("last.pt", "best.pt"):
        saved = checkpoint.load(tmp_path / "run" / "checkpoints" / name)
        del saved["threads"]
        checkpoint.save(tmp_path / "run" / "checkpoints" / name, saved)
    assert bnn_train("resume=run").code == 0 and summary(tmp_path / "run")["threads"] == 1


def test_a_sweep_gives_each_run_its_own_threads(bnn_train, summary, threads):
    torch.set_num_threads(2)
    done = bnn_train(*SMALL, "engine.threads=1,null", "-m")
    assert done.code == 0 and [summary(run)["threads"] for run in done.runs] == [1, 2]
