"""Choices of the user in `--config-dir` and `hydra.searchpath`: the commands that bnn-train prints name these folders too."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT, code_of, following
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from bnn_exp.records import summary

SMALL = ("trainer.epochs=1", "model.hidden_size=8")
HEADER = "# @package _global_\n"
MINE = HEADER + "defaults:\n  - override /optimizer: hypermask\nmodel: {hidden_size: 8}\ntrainer: {epochs: 1}\n"


@pytest.fixture
def confs(tmp_path) -> Path:
    """Returns the folder `my confs`, which holds the experiment `mine`."""
    (tmp_path / "my confs/experiment").mkdir(parents=True)
    (tmp_path / "my confs/experiment/mine.yaml").write_text(MINE)
    return tmp_path / "my confs"


def composes(bnn_train, arguments: list[str]) -> bool:
    """Returns True if Hydra composes a command with these arguments."""
    return bnn_train(*arguments, "--cfg", "job").code == 0


@pytest.mark.parametrize("flags", [["--config-dir", "my confs"], ["hydra.searchpath=[file://my confs]"]])
def test_the_next_command_finds_the_experiment(bnn_train, confs, flags):
    done = bnn_train(*flags, "experiment=mine", "hydra.run.dir=run")
    assert done.code == 0, done.err
    arguments = following(done.out)
    assert "experiment=mine" in arguments and composes(bnn_train, arguments)


def test_the_next_command_names_a_configuration_of_its_own(bnn_train, confs):
    (confs / "base.yaml").write_text("defaults:\n  - config\n  - _self_\nseed: 5\n")
    done = bnn_train("--config-dir", str(confs), "--config-name", "base", *SMALL, "hydra.run.dir=run")
    arguments = following(done.out)
    assert arguments[arguments.index("--config-name") + 1] == "base" and composes(bnn_train, arguments)


@pytest.mark.slow
def test_the_best_of_a_sweep_finds_the_experiment_later_too(bnn_train, confs):
    sweep = ("-m", "--config-dir", "my confs", "experiment=mine", "optimizer.delta=0.1,0.2", "hydra.sweep.dir=s")
    for done in (bnn_train(*sweep), bnn_train("task=report", "from=s")):
        assert done.code == 0, done.err
        (best,) = [line for line in done.out.splitlines() if line.startswith("the best: ")]
        arguments = shlex.split(best.removeprefix("the best: bnn-train "))
        assert arguments[:2] == ["--config-dir", "my confs"] and composes(bnn_train, arguments)


def test_a_run_that_goes_on_keeps_the_flags_of_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    (tmp_path / "summary.json").write_text('{"flags": ["--config-dir", "mine"]}')
    assert summary.write(tmp_path, "completed")["flags"] == ["--config-dir", "mine"]


def test_the_experiment_of_the_page_about_sweeps_runs(bnn_train, forget, tmp_path):
    """The plugin of docs/add_a_rule.md lies beside the experiment. The command runs in another folder."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)
    (tmp_path / "elsewhere/confs/experiment").mkdir(parents=True)
    (tmp_path / "elsewhere/confs/experiment/mine.yaml").write_text(text)
    (tmp_path / "elsewhere/confs/experiment/patient.py").write_text(code_of("add_a_rule.md")[0])
    done = bnn_train("--config-dir", "elsewhere/confs", "experiment=mine", "--cfg", "job")
    values = OmegaConf.create(done.out)
    assert done.code == 0 and (values.model.name, values.optimizer.patience) == ("vgg", 5), done.err
    forget()
    quick = ("model.channels=[2,2,2]", "trainer.epochs=1", "trainer.limit_batches=1")
    done = bnn_train("--config-dir", "elsewhere/confs", "experiment=mine", *quick, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert OmegaConf.load("run/config.yaml").plugins == [str(tmp_path / "elsewhere/confs/experiment/patient.py")]


def test_a_resumed_run_that_is_to_be_longer_is_pointed_to_a_new_one(bnn_train, copy_of_run, tmp_path):
    copy_of_run(tmp_path / "run", *SMALL)
    done = bnn_train("resume=run", "trainer.epochs=60")
    assert done.code == 2 and "init_from=run trainer.epochs=60" in done.err and len(done.err.splitlines()) == 2
    assert bnn_train("init_from=run", "trainer.epochs=60", "--cfg", "job").code == 0
