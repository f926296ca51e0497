"""Tests training in bf16 and with torch.compile: which numbers stay exact, and how far others may differ."""

import json
import shutil

import pytest
import torch
from helpers import settings_of, trainer_of

from bnn_exp.nn import BinaryLinear, binarize
from bnn_exp.training import measured, precision

UNIT = 2.0**-8  # the unit roundoff of bf16


@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize("pixels", [True, False])
def test_sums_of_bits_stay_exact_and_gradients_round_to_bf16(rows, pixels):
    torch.manual_seed(0)
    layer = BinaryLinear(600, 40, binary_input=not pixels)
    x = torch.randint(256, (rows, 600), dtype=torch.uint8) if pixels else binarize(torch.randn(rows, 600))
    exact = x.double() @ layer.value.detach().double().T / (255 if pixels else 1)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=2.0**-23 if pixels else 0, atol=0)
    grad = torch.randn_like(y)
    y.backward(grad)
    inputs = x.double() / (255 if pixels else 1)
    error = (layer.weight.grad.double() - grad.double().T @ inputs).abs()
    assert (error <= 2.01 * UNIT * grad.double().abs().T @ inputs.abs()).all()  # grad and the result are rounded once each
    assert error.max() > 0


@pytest.mark.parametrize("model", ["mlp", "bncvl"])
def test_bf16_learns_as_fp32_does(model):
    losses = {}
    for name in ("fp32", "bf16"):
        few = ("delta=0.01", "trainer.batch_size=96", "engine=dense")
        trainer = trainer_of(f"model={model}", f"engine.precision={name}", *few)
        losses[name] = [trainer.epoch()["train_loss"] for _ in range(5)]
    assert losses["bf16"] != losses["fp32"]  # bf16 has an effect
    assert losses["bf16"][-1] < 0.8 * losses["bf16"][0]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("model", ["mlp", "bncvl"])
def test_a_compiled_network_learns_the_same(model):
    losses = []
    for choice in ("true", "false"):
        trainer = trainer_of(f"model={model}", f"engine.compile={choice}", "dataset.limit=512", "trainer.batch_size=128")
        losses.append([trainer.epoch()["train_loss"] for _ in range(2)])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-2)  # the same sums in another order
    assert losses[0][1] == pytest.approx(losses[1][1], rel=5e-2)  # latent weights near a threshold have flipped apart


# engine.precision=auto


LARGE = ("optimizer=counter", "model.hidden_size=256", "trainer.batch_size=200")


def settled(engine: str, *overrides: str) -> str:
    return precision.settled(settings_of(*LARGE, *overrides), "cpu", engine).engine.precision


def test_auto_is_bf16_where_the_processor_multiplies_it_clearly_faster(tmp_path, monkeypatch):
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    for seconds, chosen in ((1.0, "fp32"), (0.8, "fp32"), (0.5, "bf16")):
        measured.keep_products("matrices", {"fp32": 1.0, "bf16": seconds})
        assert settled("dense") == chosen
    for forced in ("fp32", "bf16"):
        assert settled("dense", f"engine.precision={forced}") == forced
    assert settled("dense", "model.hidden_size=16") == "fp32"  # products take a small part of such a step
    assert precision.settled(settings_of(*LARGE), "cuda", "dense").engine.precision == "bf16"


def test_products_are_measured_once_for_each_processor(tmp_path, monkeypatch):
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    assert measured.products("matrices") is None
    settled("dense")
    kept = measured.products("matrices")
    assert kept and min(kept.values()) > 0
    monkeypatch.setattr(precision, "measure_products", lambda kind: pytest.fail("measured again"))
    settled("dense")
    monkeypatch.setattr(measured, "processor", lambda: "another")
    assert measured.products("matrices") is None
    measured.keep_products("matrices", {"fp32": 3.0, "bf16": 1.0})
    monkeypatch.undo()
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    assert measured.products("matrices") == kept


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"x": 1}'])
def test_a_damaged_table_is_measured_anew(tmp_path, monkeypatch, content):
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    measured.keep_products("matrices", {"fp32": 1.0, "bf16": 1.0})
    measured.place_of_products().write_text(content)
    assert measured.products("matrices") is None
    measured.keep_products("matrices", {"fp32": 2.0, "bf16": 1.0})
    assert measured.products("matrices") == {"fp32": 2.0, "bf16": 1.0}


def test_a_folder_that_cannot_be_written_costs_only_the_memory_of_the_measurement(monkeypatch):
    monkeypatch.setenv("BNN_EXP_CACHE", "/proc/none")
    assert settled("dense") in ("fp32", "bf16") and measured.products("matrices") is None


def test_a_resumed_run_keeps_its_precision(copy_of_run, bnn_train, tmp_path, monkeypatch, summary):
    sizes = ("model.hidden_size=300", "dataset.limit=200", "trainer.epochs=2", "trainer.batch_size=100", "engine=dense")
    run = copy_of_run(tmp_path / "run", "optimizer=counter", *sizes)
    assert torch.load(run / "checkpoints/last.pt")["precision"] == summary(run)["precision"] == "fp32"
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    measured.keep_products("matrices", {"fp32": 2.0, "bf16": 1.0})
    auto = settings_of(*LARGE)
    for begun, device, expected in (
        ({"precision": "fp32", "device": "cpu"}, "cpu", "fp32"),
        ({"precision": "bf16", "device": "cpu"}, "cpu", "bf16"),
        ({}, "cpu", "fp32"),  # a checkpoint of an earlier version
        ({}, "cuda:1", "auto"),
        ({"precision": "bf16", "device": "cuda"}, "cpu", "auto"),
        ({"precision": "bf16", "device": "cuda"}, "cuda:0", "bf16"),
    ):
        assert precision.as_begun(auto, device, begun).engine.precision == expected
    (run / "summary.json").write_text(json.dumps(summary(run) | {"status": "interrupted"}))
    assert bnn_train(f"resume={run}").code == 0 and summary(run)["precision"] == "fp32"
    assert bnn_train("optimizer=counter", *sizes, "trainer.epochs=1", "hydra.run.dir=new").code == 0
    assert summary(tmp_path / "new")["precision"] == "bf16" and " in bf16, " in (tmp_path / "new/train.log").read_text()
