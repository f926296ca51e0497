"""Other programs read from a stopped and resumed run exactly what metrics.jsonl says, each epoch once."""

import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys

import pytest
from helpers import SMALL, epochs
from omegaconf import OmegaConf

from bnn_exp.records import loggers, runs


def events_of(directory):
    """Returns (name, epoch, value) of every scalar in every event file, in file order."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    for file in sorted((directory / "tensorboard").iterdir()):
        for event in loading.EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    yield value.tag, event.step, value.tensor.float_val[0]


def history_of_mlflow(directory):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{directory}/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'bnn_exp'")
    (run,) = client.search_runs([experiment.experiment_id])
    summary = runs.read(directory).summary
    assert run.info.status == "FINISHED" and run.data.tags["summary.bits_sha256"] == summary["bits_sha256"]
    assert run.data.params["model.hidden_size"] == "32" and run.data.params["logger.name"] == "mlflow"
    for name in run.data.metrics:
        yield from ((name, m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))


def records_of_wandb(directory):
    (file,) = (directory / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    for line in done.stdout.splitlines():
        numbers = json.loads(line).get("history", {}).get("item", {})
        yield from ((name, numbers["_step"], value) for name, value in numbers.items() if not name.startswith("_"))


READ = {"tensorboard": events_of, "mlflow": history_of_mlflow, "wandb": records_of_wandb}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", pytest.param("mlflow", marks=pytest.mark.slow)])
def test_a_stopped_and_resumed_run_is_there_once_and_whole(bnn_train, monkeypatch, name):
    """The run stops in the third epoch, and the logger lacks the second one, as after a kill."""
    from bnn_exp.training.trainer import Trainer

    pytest.importorskip(name)
    step, log = Trainer.train_on, loggers.Forgiving.log

    def stop_in_the_third(self, *batch):
        if self.progress.epoch == 2 and self.progress.batch == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *batch)

    monkeypatch.setattr(Trainer, "train_on", stop_in_the_third)
    monkeypatch.setattr(loggers.Forgiving, "log", lambda self, line: line["epoch"] == 2 or log(self, line))
    run = bnn_train(*SMALL, f"logger={name}").runs[0]
    monkeypatch.undo()
    monkeypatch.chdir(run.parent)
    assert len(epochs(run)) == 2 and runs.read(run).status == "interrupted"
    assert bnn_train(f"resume={run}").code == 0
    written = sorted(READ[name](run))
    expected = sorted((key, line["epoch"], value) for line in epochs(run) for key, value in loggers.scalars(line).items())
    assert [triple[:2] for triple in written] == [triple[:2] for triple in expected]
    assert [triple[2] for triple in written] == pytest.approx([triple[2] for triple in expected], rel=1e-6)
    assert {epoch for _, epoch, _ in written} == {1, 2, 3, 4}
    assert {"train_loss", "test_accuracy", "flips/layers.0.weight", "ones/layers.3.weight"} <= {key for key, _, _ in written}


def test_tensorboard_after_a_kill_within_an_epoch_shows_each_epoch_once(tmp_path):
    """The event file of a killed run ends within a record, after half of the third epoch's scalars."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings, lines = OmegaConf.create({"name": "tensorboard"}), [{"epoch": i, "a": i, "b": {"c": 2 * i}} for i in range(1, 5)]
    killed = loggers.start(settings, tmp_path, {}, lines[:2])
    killed.log({"epoch": 3, "a": 3})
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes() + b"\x18\x00\x00")
    resumed = loggers.start(settings, tmp_path, {}, lines[:3])
    resumed.log(lines[3])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name, factor in (("a", 1), ("b/c", 2)):
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(i, factor * i) for i in range(1, 5)]


@pytest.mark.parametrize("name", READ)
def test_a_logger_that_is_not_installed_is_refused(bnn_train, tmp_path, monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda found, *rest: None if found == name else find(found, *rest))
    done = bnn_train(*SMALL, f"logger={name}")
    assert done.code == 2 and len(done.err.splitlines()) == 2
    assert f"logger={name}" in done.err and f"pip install 'bnn-exp[{name}]'" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_that_name_is_no_logger(bnn_train, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    assert bnn_train(*SMALL, "logger=wandb").code == 2


class Broken:
    last = 0

    def __init__(self, *_):
        pass

    def log(self, metrics):
        if metrics["epoch"] == 2:
            raise ConnectionError("the server is gone")
        assert metrics["epoch"] == 1, "asked again"

    finish = log


def test_a_logger_that_breaks_does_not_end_the_training(bnn_train, monkeypatch):
    monkeypatch.setitem(loggers.LOGGERS, "none", Broken)
    done = bnn_train(*SMALL)
    assert done.code == 0 and len(epochs(done.runs[0])) == 4
    assert (done.runs[0] / "train.log").read_text().count("the server is gone\n") >= 1


def test_a_logger_that_cannot_begin_is_left_out_and_said(bnn_train, monkeypatch):
    def unreachable(*_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(loggers.LOGGERS, "none", unreachable)
    done = bnn_train(*SMALL)
    assert done.code == 0 and len(epochs(done.runs[0])) == 4 and done.err == ""
    assert "warning: logger=none is left out" in done.out and "Traceback" not in done.out
    assert (done.runs[0] / "train.log").read_text().count(
        "no route\nto host\n"
    ) == 2  # once in the warning, once in the traceback


def test_files_of_wandb_are_no_runs(tmp_path):
    for folder in ("0", "0/wandb/run-1/files"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.yaml").write_text("seed: 0\n")
    assert [record.directory.name for record in runs.find([tmp_path])] == ["0"]
