"""task=evaluate and task=predict: what they say is counted anew from the images."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bnn_exp import load_model
from bnn_exp.data import sources

SMALL = ("model.hidden_size=32", "trainer.epochs=10", "trainer.batch_size=128")


@pytest.fixture
def run(copy_of_run, tmp_path):
    return copy_of_run(tmp_path / "run", *SMALL)


@pytest.mark.parametrize("place", ["run", "run/model.safetensors"])
def test_evaluation_counts_both_networks(bnn_train, run, summary, place):
    done = bnn_train("task=evaluate", f"from={place}")
    assert done.code == 0, done.err
    result = json.loads((run / "evaluation.json").read_text())
    digits, network = sources.read("digits"), load_model(run)[0]
    with torch.no_grad():
        answers = network(torch.from_numpy(digits.test_images)).argmax(1).numpy()
    assert result["accuracy_float"] == pytest.approx(100 * (answers == digits.test_labels).mean())
    assert result["accuracy_float"] == result["accuracy_packed"] == pytest.approx(summary(run)["test_accuracy"])
    assert result["different_predictions"] == 0 and result["rows"] == 360
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (digits.test_labels, answers), 1)
    assert result["confusion"] == counts.tolist()
    assert Image.open(run / "mistakes.png").size[0] > 500


def test_a_network_that_can_not_be_packed_is_evaluated_all_the_same(bnn_train, run):
    assert bnn_train(*SMALL, "model.batch_norm.running_stats=false", "hydra.run.dir=other").code == 0
    done = bnn_train("task=evaluate", "from=other")
    assert done.code == 0 and "running_stats" in done.out
    result = json.loads((run.parent / "other/evaluation.json").read_text())
    assert result["accuracy_packed"] is None and result["accuracy_float"] > 10


TWINS = {
    "mlp": ("model.hidden_size=16",),
    "bncvl": ("model=bncvl", "model.channels=[4,6]", "model.dense=[8]"),
    "vgg": ("model=vgg", "model.channels=[4,6]"),
}


@pytest.mark.parametrize("model", TWINS)
def test_a_float_twin_is_evaluated_and_predicted_with_and_packed_in_no_way(bnn_train, tmp_path, model, summary):
    twin = (*TWINS[model], "optimizer=latent_adam", "model.weights=float", "trainer.epochs=2", "trainer.batch_size=256")
    assert bnn_train(*twin, "hydra.run.dir=twin").code == 0
    done = bnn_train("task=evaluate", "from=twin")
    assert done.code == 0 and "can't be packed" in done.out, done.err
    result = json.loads((tmp_path / "twin/evaluation.json").read_text())
    assert result["accuracy_float"] == pytest.approx(summary("twin")["test_accuracy"]) and result["accuracy_packed"] is None
    image = sources.read("digits").test_images[3]
    Image.fromarray(image[0]).save(tmp_path / "3.png")
    with torch.no_grad():
        answer = int(load_model("twin")[0](torch.from_numpy(image[None])).argmax())
    told = bnn_train("task=predict", "from=twin", "input=3.png")
    assert told.code == 0 and next(line for line in told.out.splitlines() if "3.png" in line).split()[3] == str(answer)
    for refused in ("task=benchmark", "task=export", "task=export export.format=c", "task=export export.format=torch"):
        done = bnn_train(*refused.split(), "from=twin")
        assert done.code == 2 and "can't be packed" in done.err and len(done.err.splitlines()) == 2, done.err
        assert model == "vgg" or done.err.startswith("bnn-train: model.weights=float: ")
    untrained = bnn_train("task=benchmark", *TWINS[model], "optimizer=latent_adam", "model.weights=float")
    assert untrained.code == 2 and "can't be packed" in untrained.err and len(untrained.err.splitlines()) == 2


def test_images_of_a_folder_and_of_another_kind(bnn_train, run, tmp_path):
    digits, network = sources.read("digits"), load_model(run)[0]
    (tmp_path / "images").mkdir()
    for i in range(5):
        Image.fromarray(digits.test_images[i, 0]).save(tmp_path / f"images/{i}.png")
    big = Image.fromarray(digits.test_images[5, 0]).resize((64, 64), Image.Resampling.NEAREST).convert("RGB")
    big.save(tmp_path / "images/5.png")
    (tmp_path / "images/notes.txt").write_text("no image")
    done = bnn_train("task=predict", "from=run", "input=images")
    assert done.code == 0 and "notes" not in done.out, done.err
    with torch.no_grad():
        probabilities = network(torch.from_numpy(digits.test_images[:5])).softmax(1)
    lines = [line for line in done.out.splitlines() if ".png" in line]
    assert len(lines) == 6
    for line, row in zip(lines, probabilities, strict=False):
        name, answer, probability = (cell.strip() for cell in line.strip("│").split("│")[:3])
        assert answer == str(int(row.argmax())) and probability == f"{100 * float(row.max()):.1f}%", name
    alone = bnn_train("task=predict", "from=run", "input=images/3.png")
    assert next(line for line in alone.out.splitlines() if ".png" in line).split() == lines[3].split()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["task=evaluate"], "from="),
        (["task=evaluate", "from=nowhere"], "nowhere"),
        (["task=evaluate", "from=[run,run]"], "takes one"),
        (["task=evaluate", "from=run", "dataset=local", "dataset.path=nowhere"], "nowhere"),
        (["task=predict", "from=run"], "input="),
        (["task=predict", "from=run", "input=nowhere"], "nowhere"),
        (["task=predict", "from=run", "input=run/checkpoints"], "no image there"),
        (["task=predict", "from=run", "input=run/summary.json"], "not a readable image"),
    ],
)
def test_bad_input(bnn_train, run, arguments, text):
    before = sorted(run.rglob("*"))
    done = bnn_train(*arguments)
    assert done.code == 2 and text in done.err and len(done.err.splitlines()) <= 2
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(("kind", "file"), [("c", "network.c"), ("torch", "network.pt2"), ("onnx", "network.onnx")])
def test_exports_say_what_they_made(bnn_train, run, tmp_path, kind, file):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    if kind == "c" and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    done = bnn_train("task=export", "from=run", f"export.format={kind}", "export.dir=out")
    assert done.code == 0 and "all 360 test rows" in done.err, done.err
    assert (tmp_path / "out" / file).stat().st_size > (64 * 32 + 2 * 32 * 32 + 32 * 10) / 8


@pytest.mark.slow
def test_a_benchmark_compares_ways_that_agree(bnn_train, run, monkeypatch):
    from bnn_exp.deploy import benchmark

    monkeypatch.setattr(benchmark, "LAYERS", ((64, 32, 1),))
    monkeypatch.setattr(benchmark.benchmark, "__defaults__", ((1, 16), 3, 1))
    done = bnn_train("task=benchmark", "from=run")
    assert done.code == 0, done.err
    found = json.loads((run / "benchmark.json").read_text())
    for row in [*found["network"], *found["layers"]]:
        assert row["low"] <= row["median"] <= row["high"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["median"])
    assert {row["batch"] for row in found["network"]} == {1, 16}
    assert found["files"]["model.safetensors"] == (run / "model.safetensors").stat().st_size
    assert (run / "benchmark.png").exists() and "packed is" in done.out
    alone = bnn_train("task=benchmark", "model.hidden_size=32", "hydra.run.dir=configured")
    assert alone.code == 0, alone.err
    files = json.loads((run.parent / "configured/benchmark.json").read_text())["files"]
    assert abs(files["model.safetensors"] - found["files"]["model.safetensors"]) < 200  # its configuration alone is another
