"""scripts/cpu.py: the table has a row for each case, with ratios of the times that cpu.json holds."""

import json
import re
import sys

import pytest
from helpers import ROOT, rest_slow

from bnn_exp.commands.benchmark import peers
from bnn_exp.config.settings import load_settings
from bnn_exp.training import engine

sys.path.append(str(ROOT / "scripts"))
import cpu as script

SMALL = ("dataset=digits", "dataset.limit=256", "model.hidden_size=32", "trainer.batch_size=64")


def test_a_row_holds_the_ratios_of_the_times(tmp_path, capsys):
    assert script.main(["--only", "counter", "peers", "--rounds", "3", "--out", str(tmp_path), *SMALL]) == 0
    found = json.loads((tmp_path / "cpu.json").read_text())
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert found["machine"]["threads"] == 1 and [*found["cases"]] == ["counter", "peers"]
    for cells, measured in zip(table[2:], found["cases"].values(), strict=True):
        ours, fp32, bf16 = (way["median"] for way in measured["ways"][:3])
        ratios = [float(re.match(r"[\d.]+", cell)[0]) for cell in cells[3:6]]
        assert ratios == pytest.approx([fp32 / ours, bf16 / ours, min(fp32, bf16) / ours], abs=0.006)
    libraries = [way["way"] for way in found["cases"]["peers"]["ways"][3:]]
    assert libraries == [name for name in peers.LIBRARIES if peers.is_installed(name)]


@pytest.mark.parametrize("name", rest_slow(["random", "latent", "bncvl", *script.RULES], 3))
def test_a_case_is_a_training_of_a_cpu_on_mnist(name):
    settings = load_settings(script._composed(script.CASES[name].overrides.split()))
    assert settings.dataset.name == "mnist" and settings.device == "cpu"
    packed = name not in ("latent", "bncvl")
    assert engine.choose(settings, "cpu") == ("packed" if packed else "dense")
