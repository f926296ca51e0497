"""Interrupted sweeps, and jobs of launcher=local: their places, and how they end. The command names what is missing."""

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

from bnn_exp.commands import places
from bnn_exp.commands.places import Places
from bnn_exp.commands.sweep import planned
from bnn_exp.config import installed
from bnn_exp.records.runs import Record
from bnn_exp.records.sweeps.text import reason

LOCAL = ("launcher=local", "launcher.jobs=2", "hydra.sweep.dir=s")
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
    results = jobs.in_queue([lambda gpus, job=job: job() for job in (Job, Good, Raised)], [0] * 3, Places([]))
    assert [result.return_value for result in results] == [None, 97.0, None]
    assert sorted(now.codes) == [FAILED, FAILED, TOO_LOW]
    err = capfd.readouterr().err
    assert "it ended without a result\n" in err and "ValueError: no such key\n" in err and "bnn-train: below\n" in err


class Machine:
    """Fake jobs. Each runs for a number of looks at it, and the machine notes which jobs run at the same time, and where."""

    def __init__(self, *looks: int):
        self.left, self.order, self.together = list(looks), [], []
        self.running: dict[int, tuple[str, ...]] = {}

    def starts(self):
        return [lambda gpus, number=number: self.start(number, gpus) for number in range(len(self.left))]

    def start(self, number, gpus):
        self.running[number] = gpus
        self.order.append(number)
        self.together.append(dict(self.running))
        return SimpleNamespace(done=lambda: self.done(number), task=lambda index: self.failed)

    def done(self, number):
        self.left[number] -= 1
        if self.left[number] <= 0:
            self.running.pop(number, None)
        return number not in self.running

    failed = SimpleNamespace(paths=SimpleNamespace(result_pickle=Path("nowhere"), stderr=Path("log")))


@pytest.fixture
def in_queue(monkeypatch):
    """Returns a function that runs fake jobs, for numbers of looks, and returns their `Machine`. Every job fails."""
    pytest.importorskip("submitit")
    from bnn_exp.commands import jobs

    monkeypatch.setattr(jobs, "PAUSE", 0)

    def run(looks, devices, free: Places) -> Machine:
        machine = Machine(*looks)
        assert len(jobs.in_queue(machine.starts(), devices, free)) == len(looks)
        return machine

    return run


LOOKS = [9, 1, 1, 3, 1, 2]


def test_no_two_jobs_share_a_gpu_and_the_first_in_the_queue_takes_the_first_free_gpu(in_queue, capfd):
    machine = in_queue(LOOKS, [1] * 6, Places(["0", "GPU-ab"]))
    assert machine.order == [0, 1, 2, 3, 4, 5]
    for jobs in machine.together:
        assert len(jobs) <= 2 and len({*jobs.values()}) == len(jobs)
    # Job 0 keeps its GPU while all others, which fail, run one after the other on the second one.
    assert [jobs[max(jobs)] for jobs in machine.together] == [("0",), *[("GPU-ab",)] * 5]
    assert capfd.readouterr().err.count("it ended without a result") == 6


def test_as_many_jobs_share_a_gpu_as_the_user_allows(in_queue):
    machine = in_queue([5] * 6, [1] * 6, Places(["0", "1"], per_gpu=2))
    most = max(machine.together, key=len)
    assert sorted(most.values()) == [("0",), ("0",), ("1",), ("1",)]
    assert [jobs[max(jobs)] for jobs in machine.together[:2]] == [("0",), ("1",)]  # an empty GPU comes first
    assert max(map(len, in_queue([5] * 6, [1] * 6, Places(["0", "1"], per_gpu=2, most=3)).together)) == 3


def test_a_job_of_two_devices_takes_two_gpus_and_is_not_overtaken(in_queue):
    machine = in_queue([1, 9, 1, 1, 1], [1, 1, 2, 1, 3], Places(["0", "1"]))
    assert machine.order == [0, 1, 2, 3, 4]
    assert machine.together[2] == {2: ("0", "1")} and machine.together[4] == {4: ("0", "1")}  # the last job wants three


def test_jobs_without_a_gpu_take_a_core_each(in_queue):
    assert max(map(len, in_queue([5] * 5, [0] * 5, Places([], most=2)).together)) == 2
    assert Places([]).most == installed.cores() and Places(["0"] * 99, per_gpu=9).most == 9 * 99


@pytest.mark.parametrize(
    ("given", "count", "names"),
    [
        (None, 3, ["0", "1", "2"]),
        ("2,0", 2, ["2", "0"]),
        ("1,-1,0", 1, ["1"]),  # CUDA reads the names up to the first that is none
        ("GPU-3a, GPU-4b", 2, ["GPU-3a", "GPU-4b"]),
        ("MIG-1,MIG-2", 1, ["MIG-1", "MIG-2"]),  # CUDA counts only one
        ("7", 0, []),
        ("", 4, []),
    ],
)
def test_the_visible_gpus_are_named_as_the_variable_names_them(monkeypatch, given, count, names):
    monkeypatch.setattr(installed, "has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv(places.VISIBLE, raising=False)
    if given is not None:
        monkeypatch.setenv(places.VISIBLE, given)
    assert places.gpus() == names


def test_a_machine_without_a_driver_is_not_asked_for_its_gpus(monkeypatch):
    monkeypatch.delenv(places.VISIBLE, raising=False)
    monkeypatch.setattr(installed, "DRIVER", "lib-of-no-driver.so")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("torch was asked"))
    assert places.gpus() == []


@pytest.fixture
def launcher(monkeypatch):
    """Returns a function that makes the launcher of a sweep with some overrides, on a machine with GPUs 0 and 1."""
    pytest.importorskip("submitit")
    from hydra import compose, initialize_config_dir

    from bnn_exp.commands import jobs
    from bnn_exp.config import versions
    from bnn_exp.config.registry import CONF

    monkeypatch.setattr(places, "gpus", lambda: ["0", "1"])

    def make(*overrides):
        made = jobs.LocalLauncher()
        with initialize_config_dir(str(CONF), **versions.HYDRA):
            made.config = compose("config", ["launcher=local", *overrides])
        return made

    return make


def test_a_job_takes_gpus_unless_the_user_chooses_its_device(launcher):
    sweep = launcher()
    assert sweep._devices(["seed=1"]) == 1 and sweep._devices(["device=cuda", "engine.devices=2"]) == 2
    assert sweep._devices(["device=cpu"]) == sweep._devices(["device=cuda:1"]) == 0
    assert launcher("device=cuda:1")._devices([]) == 0 and launcher("engine.devices=2")._devices(["seed=1"]) == 2
    assert launcher("device=cpu")._gpus == []  # without asking the machine


def test_a_search_asks_for_as_many_trials_as_the_machine_has_places(launcher):
    assert launcher().at_a_time == 2 and launcher("launcher.per_gpu=3").at_a_time == 6
    assert launcher("launcher.jobs=1").at_a_time == 1 and launcher("engine.devices=2").at_a_time == 1
    assert launcher("device=cpu").at_a_time == installed.cores() and launcher("device=cpu", "launcher.jobs=7").at_a_time == 7


@pytest.mark.slow
@pytest.mark.parametrize("search", [(), ("sweeper=optuna", "sweep.trials=3", "delta=tag(log,interval(0.01,0.1))")])
def test_each_job_sees_its_own_gpu_and_the_command_says_so(bnn_train, monkeypatch, search):
    """The jobs train on the CPU, because the machine has no GPUs 5 and 6. A plugin notes the GPUs that its job sees."""
    pytest.importorskip("submitit")
    if search:
        pytest.importorskip("optuna")
    monkeypatch.setattr(places, "gpus", lambda: ["5", "6"])
    Path("spy.py").write_text(
        "import os, pathlib\npathlib.Path('seen', str(os.getpid())).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    Path("seen").mkdir()
    done = bnn_train("-m", *TINY, "launcher=local", "plugins=[spy.py]", *(search or ["seed=0,1,2"]), "hydra.sweep.dir=s")
    assert done.code == 0 and len(done.runs) == 3
    assert done.err.count("2 jobs at a time, 1 a GPU: GPU 5, GPU 6\n") == 1
    seen = sorted(file.read_text() for file in Path("seen").iterdir() if file.name != str(os.getpid()))
    assert len(seen) == 3 and {*seen} == {"5", "6"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("launcher=local", "launcher.per_gpu=0"), "launcher.per_gpu=0 is not allowed\nallowed: a whole number ≥ 1"),
        (("launcher.per_gpu=2",), "launcher.per_gpu: not a setting of the chosen launcher\nallowed: with launcher=local"),
        (
            ("launcher=slurm", "launcher.jobs=2"),
            "launcher.jobs: not a setting of the chosen launcher\nallowed: with launcher=local",
        ),
    ],
)
def test_settings_of_the_local_launcher_are_refused_without_it(bnn_train, arguments, message):
    pytest.importorskip("submitit")
    done = bnn_train("-m", "seed=0,1", *arguments)
    assert done.code == 2 and message in done.err and not any(Path().iterdir())
