"""SLURM: which jobs are queued again. A shell script replaces `scontrol`; slow tests use a real cluster if there is one."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import COMMAND, TINY

from bnn_exp.commands import slurm

SHOWN = "JobId=17 JobName=x\n   JobState={state} Reason={reason} Dependency=(null)\n   Requeue=1 Restarts=0 BatchFlag={batch}\n"


@pytest.fixture
def cluster(tmp_path_factory, monkeypatch):
    """Puts a script `scontrol` first on the path, which reports a state of job 17.

    The value is a function that sets the state, and returns a function that lists the requests to `scontrol`.
    """
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def of(state: str, reason: str = "None", batch: int = 1, fails: bool = False):
        (folder / "shown").write_text(SHOWN.format(state=state, reason=reason, batch=batch))
        refuse = "[ $1 = requeue ] && { echo 'Requested operation is disabled' >&2; exit 1; }\n" if fails else ""
        (folder / "scontrol").write_text(
            f"#!/bin/sh\necho $* >> {folder}/asked\n{refuse}[ $1 = requeue ] || cat {folder}/shown\n"
        )
        (folder / "scontrol").chmod(0o755)
        (folder / "asked").write_text("")
        return lambda: (folder / "asked").read_text().splitlines()

    return of


@pytest.mark.parametrize(
    ("state", "reason", "batch", "again"),
    [
        ("RUNNING", "None", 1, True),  # sbatch --signal sent a warning, or the job will be preempted
        ("COMPLETING", "TimeLimit", 1, True),
        ("COMPLETING", "None", 1, False),  # its user cancelled the job, or SLURM queues it again
        ("RUNNING", "None", 0, False),  # an interactive job
    ],
)
def test_a_job_that_is_wanted_no_more_is_not_queued_again(cluster, state, reason, batch, again):
    asked = cluster(state, reason, batch)
    said = slurm.requeue(signal.SIGUSR1)
    assert asked() == ["show job 17"] + ["requeue 17"] * again
    assert ("queues job 17 again" in said) is again and bool(said) is again


def test_ctrl_c_asks_for_nothing_and_a_refusal_is_said(cluster, monkeypatch):
    asked = cluster("RUNNING", fails=True)
    assert slurm.requeue(signal.SIGINT) == "" and asked() == []
    assert slurm.requeue(signal.SIGTERM) == "SLURM did not queue job 17 again: Requested operation is disabled"
    monkeypatch.setenv("PATH", "/nowhere")
    assert "did not queue job 17 again" in slurm.requeue(signal.SIGTERM)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slurm.requeue(signal.SIGTERM) == ""


def test_a_stopped_run_is_queued_again_if_it_would_go_on(bnn_train, cluster, stopping_at):
    asked = cluster("RUNNING")
    stopping_at(1, 1, signal.SIGUSR1)
    assert bnn_train(*TINY, "hydra.run.dir=k").code == 130 and asked() == []  # a second start would be refused
    done = bnn_train(*TINY, "hydra.run.dir=a", "resume=auto")
    assert done.code == 130 and asked() == ["show job 17", "requeue 17"] and "queues job 17 again" in done.err
    stopping_at(-1, 0)
    assert bnn_train(*TINY, "hydra.run.dir=a", "resume=auto").code == 0 and len(asked()) == 2


def shown(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def wait_for(text: str, *files: Path) -> None:
    """Waits until all files contain the text, for ten minutes at most: SLURM starts a job again after two minutes."""
    until = time.monotonic() + 600
    while not all(text in shown(file) for file in files):
        assert time.monotonic() < until, [shown(file) for file in files]
        time.sleep(0.2)


def no_cluster() -> bool:
    """Returns True if no SLURM controller answers."""
    if not shutil.which("sbatch"):
        return True
    return bool(subprocess.run(["scontrol", "ping"], capture_output=True, timeout=60).returncode)


LONG = ("model.hidden_size=8", "trainer.epochs=400", "trainer.batch_size=64", "engine.threads=1")


@pytest.mark.slow
def test_a_real_job_is_queued_again_and_goes_on(tmp_path):
    """SLURM sends USR1 during the training."""
    if no_cluster():
        pytest.skip("needs a SLURM cluster, if only of this machine")
    script, out = tmp_path / "job.sh", tmp_path / "out"
    script.write_text(f"#!/bin/sh\nexec {shlex.join(COMMAND)} {' '.join(LONG)} resume=auto hydra.run.dir={tmp_path}/k\n")
    command = ["sbatch", "--parsable", "--open-mode=append", f"--output={out}", "--export=ALL", script]
    job = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.strip()
    try:
        wait_for("epoch 3/", out)
        subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
        for text in (f"queues job {job} again", "resumed after epoch", "completed: "):
            wait_for(text, out)
    finally:
        subprocess.run(["scancel", job], check=False)
    assert len((tmp_path / "k/metrics.jsonl").read_text().splitlines()) == 400


@pytest.mark.slow
def test_real_jobs_of_a_sweep_are_queued_again_by_submitit_and_go_on(tmp_path):
    """The jobs are preempted during their training. The command of the sweep waits for them, then writes the table."""
    if no_cluster():
        pytest.skip("needs a SLURM cluster, if only of this machine")
    command = [*COMMAND, "-m", "launcher=slurm", "hydra.launcher.timeout_min=60", *LONG, "seed=0,1", "hydra.sweep.dir=s"]
    logs = [tmp_path / "s" / number / "train.log" for number in "01"]
    sweep = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    jobs = set()
    try:
        wait_for("epoch 3/", *logs)
        jobs = {folder.name.split("_")[0] for folder in (tmp_path / "s/.submitit").glob("[0-9]*")}
        subprocess.run(["scancel", "--signal=USR2", *jobs], check=True)
        wait_for("interrupted: ", *logs)
        out, _ = sweep.communicate(timeout=600)
    finally:
        sweep.kill()
        subprocess.run(["scancel", *jobs], check=False)
    assert sweep.returncode == 0 and "sweep.md" in out
    for log in logs:
        assert log.read_text().count("resumed after epoch") == 1 and "completed: " in log.read_text()
