"""Hydra composes a configuration once, and finds a sweep wherever it is requested."""

import pytest
from hydra._internal.hydra import Hydra


@pytest.fixture
def composed(monkeypatch) -> list[str]:
    """A list to which each composition of a configuration adds its run mode."""
    modes, compose = [], Hydra.compose_config

    def noted(self, *arguments, **keywords):
        modes.append(keywords["run_mode"].name)
        return compose(self, *arguments, **keywords)

    monkeypatch.setattr(Hydra, "compose_config", noted)
    return modes


REFUSED = "trainer.epochs=0"  # refused after the composition


@pytest.mark.parametrize("arguments", [(), ("-m", "seed=0,1"), ("hydra.mode=MULTIRUN", "seed=0,1")])
def test_a_command_is_composed_once(arguments, bnn_train, composed):
    done = bnn_train(REFUSED, *arguments)
    assert done.code and "trainer.epochs=0" in done.err
    assert composed == ["MULTIRUN" if arguments else "RUN"]


@pytest.mark.parametrize("mode", ["RunMode.MULTIRUN", "2", "${oc.env:MODE}"])
def test_a_mode_may_be_spelled_as_hydra_reads_it(mode, bnn_train, composed, monkeypatch):
    monkeypatch.setenv("MODE", "MULTIRUN")
    bnn_train(REFUSED, f"hydra.mode={mode}", "seed=0,1")
    assert composed[-1] == "MULTIRUN"


def test_a_configuration_of_the_user_may_request_a_sweep(bnn_train, composed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.yaml").write_text("defaults: [config, _self_]\nhydra:\n  mode: MULTIRUN\n")
    bnn_train("--config-dir", "mine", "--config-name", "own", REFUSED, "seed=0,1")
    assert composed == ["MULTIRUN", "MULTIRUN"]
