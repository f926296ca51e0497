"""Interrupted sweeps, and jobs of launcher=local: jobs end with their command, and the command names what is missing."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import COMMAND, TINY, following

from bnn_exp.commands.sweep import planned
from bnn_exp.records.runs import Record
from bnn_exp.records.sweeps.text import reason

LOCAL = ("launcher=local", "hydra.sweeper.max_batch_size=2", "hydra.sweep.dir=s")
LONG = ("model.hidden_size=8", "trainer.epochs=3000", "trainer.batch_size=64")


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("seed=0,1", "model.hidden_size=8,16,32"), 6),
        (("seed=range(5)", "dataset.augment=none"), 5),
        (("seed=0",), 1),
    ],
)
def test_a_sweep_knows_how_many_jobs_it_was_to_have(tmp_path, arguments, count):
    saved = {"sweep": {"search": "grid", "trials": 20}, "hydra": {"sweeper": {}, "overrides": {"task": list(arguments)}}}
    (tmp_path / "multirun.yaml").write_text(json.dumps(saved))
    assert planned(tmp_path) == count and planned(tmp_path / "nowhere") == 0
    saved["hydra"]["sweeper"] = {"params": {"optimizer": "bop,counter"}}  # an experiment file sets these
    (tmp_path / "multirun.yaml").write_text(json.dumps(saved))
    assert planned(tmp_path) == 2 * count
    saved["sweep"]["search"] = "optuna"
    (tmp_path / "multirun.yaml").write_text(json.dumps(saved))
    assert planned(tmp_path) == 20


def test_a_sweep_that_was_cut_says_what_is_missing_and_goes_on(bnn_train, stopping_at, monkeypatch):
    from bnn_exp.training import run

    ends, save = [], run.save_model

    def second(*given):
        ends.append(given)
        if len(ends) == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # too late for the run, not for the sweep
        return save(*given)

    monkeypatch.setattr(run, "save_model", second)
    done = bnn_train("-m", *TINY, "seed=0,1,2,3", "hydra.sweep.dir=s")
    assert done.code == 130 and len(done.runs) == 2
    for text in (done.out, Path("s/sweep.md").read_text(), Path("s/report.html").read_text()):
        assert "2 of its jobs have not begun" in text
    command = following(done.out)
    assert "-m" in command and command[-1].startswith("sweep.resume=")
    again = bnn_train(*command)
    assert again.code == 0 and len(again.runs) == 4 and "not begun" not in again.out + Path("s/sweep.md").read_text()
    assert following(again.out)[0] == "task=evaluate"


def test_an_interrupted_run_says_how_far_it_came(bnn_train, stopping_at):
    stopping_at(2, 1, signal.SIGINT)
    done = bnn_train("-m", *TINY, "seed=0,1", "hydra.sweep.dir=s")
    assert "interrupted after 2 of 3 epochs" in done.out and "no more is known" not in done.out
    killed = Record(Path("k"), {"trainer": {"epochs": 9}}, {}, [{"epoch": 1}])
    assert reason(killed) == "unfinished after 1 of 9 epochs (under way, or killed)"
    assert reason(Record(Path("k"), {}, {"status": "failed", "error": "a\nb"}, [])) == "failed: a; b"


def wait_for(*files: Path) -> None:
    until = time.monotonic() + 200
    while not all(file.exists() for file in files):
        assert time.monotonic() < until, files
        time.sleep(0.05)


@pytest.fixture
def sweep(tmp_path):
    """A running sweep of long local jobs, in a process group that is killed after the test."""
    pytest.importorskip("submitit")
    command = [*COMMAND, "-m", *LONG, "seed=0,1,2,3", *LOCAL]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT), (os.killpg, signal.SIGUSR1)]
)
def test_local_jobs_end_with_their_command_and_with_a_checkpoint(tmp_path, sweep, send, number):
    """`kill` signals the command alone; Ctrl-C and queues signal the whole process group."""
    wait_for(*(tmp_path / "s" / job / "metrics.jsonl" for job in "01"))
    send(sweep.pid, number)
    out, err = sweep.communicate(timeout=100)
    assert sweep.returncode == 130 and not alive(sweep.pid)
    assert err.splitlines() == ["bnn-train: waiting for 2 jobs to end, each with a checkpoint", "bnn-train: interrupted"]
    for job in "01":
        assert json.loads((tmp_path / "s" / job / "summary.json").read_text())["status"] == "interrupted"
        assert torch.load(tmp_path / "s" / job / "checkpoints/last.pt", weights_only=True)["progress"]["batch"] >= 0
    assert out.count("interrupted after") == 2 and "The sweep is incomplete: 2 of its jobs" in out
    assert following(out)[-1].startswith("sweep.resume=")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["s/multirun.yaml", "s/.submitit", "s/0"])
def test_local_jobs_end_with_a_command_that_is_stopped_while_they_begin(tmp_path, sweep, moment):
    wait_for(tmp_path / moment)
    os.killpg(sweep.pid, signal.SIGINT)
    _, err = sweep.communicate(timeout=100)
    assert sweep.returncode == 130 and not alive(sweep.pid) and "Traceback" not in err


@pytest.mark.slow
def test_what_local_jobs_refuse_is_said_by_their_command(bnn_train, summary):
    """The directory of one job is locked, as if the job of a killed command still used it."""
    pytest.importorskip("submitit")
    from filelock import FileLock

    Path("s/0").mkdir(parents=True)
    with FileLock("s/0/.lock"):
        done = bnn_train("-m", *TINY, "seed=0,1", *LOCAL)
    assert done.code == 1 and "another process is running in it\nallowed: " in done.err
    assert summary("s/1")["status"] == "completed"


def test_a_local_job_without_a_result_fails_alone(capfd, tmp_path):
    pytest.importorskip("submitit")
    from hydra.core.utils import JobReturn, JobStatus

    from bnn_exp.commands import command, jobs
    from bnn_exp.errors import FAILED, TOO_LOW

    class Job:
        job_id, paths = "1", SimpleNamespace(result_pickle=tmp_path / "none", stderr=tmp_path / "log")

        def done(self):
            return True

        def task(self, number):
            return self

    class Good(Job):
        paths = SimpleNamespace(result_pickle=tmp_path, stderr=tmp_path / "log")

        def result(self):
            returned = JobReturn(status=JobStatus.COMPLETED)
            returned.return_value, returned.command = 97.0, command.Command(messages=["below"], codes=[TOO_LOW])
            return returned

    class Raised(Good):
        def result(self):
            raise RuntimeError("Job failed with trace:\n---\nValueError: no such key\n")

    now = command.begin()
    results = jobs.results([Job(), Good(), Raised()])
    assert [result.return_value for result in results] == [None, 97.0, None]
    assert sorted(now.codes) == [FAILED, FAILED, TOO_LOW]
    err = capfd.readouterr().err
    assert "it ended without a result\n" in err and "ValueError: no such key\n" in err and "bnn-train: below\n" in err
