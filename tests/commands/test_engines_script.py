"""scripts/engines.py compares the choice of engine=auto with the faster engine."""

import sys

import pytest
from helpers import ROOT, settings_of

from bnn_exp.training import engine

sys.path.append(str(ROOT / "scripts"))
import engines as script


def test_the_loss_is_the_time_of_the_chosen_engine_over_the_least(monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "choose", lambda settings, device: asked.append(settings) or "dense")
    step = {"hidden": 40, "batch": 50, "dense": 3.0, "packed": 2.0}
    assert script.loss(settings_of(), step) == ("dense", 1.5)
    assert script.loss(settings_of(), step | {"packed": 4.0}) == ("dense", 1.0)
    assert [(s.model.hidden_size, s.trainer.batch_size) for s in asked] == [(40, 50)] * 2


@pytest.mark.slow
def test_every_rule_is_measured_at_every_point_below_the_limit(monkeypatch, capsys):
    monkeypatch.setattr(script, "HIDDEN", (16, 32, 64))
    monkeypatch.setattr(script, "BATCHES", (32,))
    monkeypatch.setattr(sys, "argv", ["engines.py", "--rounds", "1", "--most", "1e6"])
    script.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if "points" in line]
    assert [line.partition(" points")[0] for line in lines] == [f"{rule}: 2" for rule in script.RULES]
