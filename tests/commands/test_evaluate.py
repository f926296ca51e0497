"""task=evaluate, task=predict, task=export, task=benchmark: their numbers are counted again from the images."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import other_data, rest_slow
from PIL import Image

from bnn_exp import load_model
from bnn_exp.data import sources
from bnn_exp.errors import UserError
from bnn_exp.records import runs

SMALL = ("model.hidden_size=32", "trainer.epochs=10", "trainer.batch_size=128")
WORSE_AND_WORSE = (
    "model.hidden_size=16",
    "trainer.epochs=5",
    "optimizer.schedule=constant",
    "delta=0.3",
    "trainer.batch_size=128",
)


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


@pytest.mark.parametrize("task", [["evaluate"], ["predict", "input=run/samples.png"]])
def test_a_gpu_that_is_not_there_is_refused(bnn_train, run, task):
    done = bnn_train(f"task={task[0]}", "from=run", *task[1:], "device=cuda:99")
    assert done.code == 2 and done.err.startswith("bnn-train: device=cuda:99: ")


def test_a_network_that_can_not_be_packed_is_evaluated_all_the_same(bnn_train, run):
    assert bnn_train(*SMALL, "model.batch_norm.running_stats=false", "hydra.run.dir=other").code == 0
    done = bnn_train("task=evaluate", "from=other")
    assert done.code == 0 and "running_stats" in done.out
    result = json.loads((run.parent / "other/evaluation.json").read_text())
    assert result["accuracy_packed"] is None and result["accuracy_float"] > 10


def evaluations(run):
    """Returns the evaluations of a run by (key of the dataset, name of the network), and the number of their files."""
    files = [*run.glob("evaluation.json"), *run.glob("evaluations/*.json")]
    found = [json.loads(file.read_text()) for file in files]
    return {(one["data"]["key"], one["model"]["which"]): one for one in found}, len(files)


def test_each_data_set_and_each_network_has_a_file_of_its_own(bnn_train, run, summary, tmp_path):
    assert bnn_train("task=evaluate", "from=run").code == 0
    before = {name: (run / name).read_bytes() for name in ("evaluation.json", "mistakes.png")}
    for seed in (1, 2):
        folder = other_data(tmp_path / f"places/{seed}/my data", seed)
        done = bnn_train("task=evaluate", "from=run", "dataset=local", f"dataset.path='{folder}'")
        assert done.code == 0 and "not the run's own" in done.out, done.err
    assert bnn_train("task=evaluate", "from=run", "which=best").code == 0
    assert before == {name: (run / name).read_bytes() for name in before}
    found, files = evaluations(run)
    own = summary(run)["dataset"]
    assert files == len(found) == 4 and {(own, "last"), (own, "best")} <= set(found)
    for (key, _), one in found.items():
        assert one["data"]["own"] == (key == own) and one["data"]["rows"] == one["rows"] == (360 if key == own else 20)
        assert one["data"]["name"] == ("digits" if key == own else "local") and one["data"]["split"] == "test"
        assert len(one["model"]["sha256"]) == 64 and one["date"][:2] == "20" and "torch" in one["versions"]
    paths = {one["data"]["path"] for (key, _), one in found.items() if key != own}
    assert paths == {str(tmp_path / f"places/{seed}/my data") for seed in (1, 2)}
    assert found[own, "last"]["model"]["bits_sha256"] == summary(run)["bits_sha256"]


def test_the_best_network_and_a_checkpoint_itself(bnn_train, copy_of_run, summary, tmp_path):
    """`which=best` and the path of best.pt give the accuracy of the best epoch, also after best.pt is copied elsewhere."""
    run = copy_of_run(tmp_path / "run", *WORSE_AND_WORSE)
    result = summary(run)
    assert result["best_test_accuracy"] > result["test_accuracy"], "else this shows nothing"
    shutil.copy(run / "checkpoints/best.pt", tmp_path / "best.pt")
    for place in (["run", "which=best"], ["run/checkpoints/best.pt"], ["best.pt"]):
        done = bnn_train("task=evaluate", f"from={place[0]}", *place[1:])
        assert done.code == 0, done.err
    accuracies = {load_model(place)[1]["sha256"] for place in (run / "checkpoints/best.pt", tmp_path / "best.pt")}
    assert len(accuracies) == 1
    found = [*evaluations(run)[0].values(), *evaluations(tmp_path)[0].values()]
    assert [one["accuracy_float"] for one in found] == [pytest.approx(result["best_test_accuracy"])] * 2
    assert all(one["accuracy_packed"] == one["accuracy_float"] for one in found)
    digits = sources.read("digits")
    Image.fromarray(digits.test_images[0, 0]).save(tmp_path / "0.png")
    assert bnn_train("task=predict", "from=run", "which=best", "input=0.png", "hydra.run.dir=p").code == 0
    model = json.loads((tmp_path / "p/predictions.json").read_text())["model"]
    assert model["which"] == "best" and model["sha256"] in accuracies
    assert bnn_train("task=export", "from=run", "which=best", "export.format=torch").code == 0
    assert (run / "export-best/network.pt2").is_file() and not (run / "export").exists()


# the copy of a file, and the network that it holds
KEPT = {"checkpoints/mybest.pt": "best", "best.safetensors": "last", "checkpoints/best.safetensors": "last"}


@pytest.mark.parametrize("copied", rest_slow(KEPT))
def test_a_kept_file_goes_by_its_own_name_and_replaces_nothing(bnn_train, copy_of_run, summary, tmp_path, copied):
    run = copy_of_run(tmp_path / "run", *WORSE_AND_WORSE)
    assert bnn_train("task=evaluate", "from=run").code == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "report.html"}
    shutil.copy(run / runs.MODEL_FILES[KEPT[copied]], run / copied)
    done = bnn_train("task=evaluate", f"from=run/{copied}")
    assert done.code == 0 and f"the network of {Path(copied).name}" in done.out, done.err
    assert bnn_train("task=export", f"from=run/{copied}", "export.format=torch").code == 0
    assert all(file.read_bytes() == content for file, content in before.items())
    (one,) = (value for (_, which), value in evaluations(run)[0].items() if which == Path(copied).name)
    told = summary(run)["test_accuracy" if KEPT[copied] == "last" else "best_test_accuracy"]
    assert one["summary_accuracy"] is None and one["accuracy_float"] == pytest.approx(told)
    assert not (run / "export").exists() and not (run / "export-best").exists()


@pytest.mark.parametrize(
    ("folder", "file", "which"),
    [
        (".", "run/model.safetensors", "last"),
        (".", "run/checkpoints/last.pt", "last"),
        ("run", "checkpoints/best.pt", "best"),
        ("run/checkpoints", "best.pt", "best"),
        (".", "run/best.pt", "best.pt"),
        (".", "best/last.pt", "last.pt"),
        ("run", "checkpoints/model.safetensors", "model.safetensors"),
    ],
)
def test_the_place_of_a_file_says_which_epoch_it_is_of(tmp_path, monkeypatch, folder, file, which):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    assert runs.which_of(Path(file)) == runs.which_of(Path(file).absolute()) == which


def test_a_checkpoint_of_an_earlier_version_is_read_by_what_its_run_says(run):
    file = run / "checkpoints/last.pt"
    saved = torch.load(file, weights_only=True)
    torch.save({key: value for key, value in saved.items() if key not in ("config", "classes", "image_shape")}, file)
    images = torch.from_numpy(sources.read("digits").test_images)
    (ours, about), (theirs, known) = load_model(file), load_model(run)
    assert torch.equal(ours(images), theirs(images)) and about == known
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model"):
        load_model(file)


def test_of_a_killed_run_nothing_is_said_that_is_not_known(bnn_train, run):
    (run / "summary.json").unlink()
    done = bnn_train("task=evaluate", "from=run/checkpoints/last.pt")
    assert done.code == 0 and "the run's own" not in done.out and "360 test rows, digits" in done.out
    ((key, which),) = evaluations(run)[0]
    assert which == "last" and evaluations(run)[0][key, which]["data"]["own"] is None and not (run / "evaluation.json").exists()


def test_another_accuracy_than_the_summary_says_is_an_error(bnn_train, run, summary):
    told = summary(run)
    for off, code in ((0.0, 0), (100 / 360, 0), (2 * 100 / 360, 1), (-18.95, 1)):
        wrong = told | {"test_accuracy": told["test_accuracy"] + off}
        (run / "summary.json").write_text(json.dumps(wrong))
        done = bnn_train("task=evaluate", "from=run")
        assert done.code == code and len(done.err.splitlines()) == (3 if code else 2), done.err
        if code:
            assert f"{wrong['test_accuracy']:.2f}%" in done.err and f"{told['test_accuracy']:.2f}%" in done.err


def test_what_can_not_be_written_is_printed_all_the_same(bnn_train, run, tmp_path):
    (run / "evaluation.json").mkdir()
    done = bnn_train("task=evaluate", "from=run")
    assert done.code == 0 and "packed" in done.out and "can't be written" in done.err and "hydra.run.dir=" in done.err
    assert len(done.err.splitlines()) == 2
    assert bnn_train("task=evaluate", "from=run", "hydra.run.dir=there").code == 0
    assert evaluations(tmp_path / "there")[1] == 1


def test_the_page_of_the_run_shows_its_evaluations_and_mistakes(bnn_train, run, monkeypatch):
    names = tuple(f"photos/<{i}>.png" for i in range(360))
    read = sources.read
    monkeypatch.setattr(sources, "read", lambda *a, **k: replace(read(*a, **k), test_names=names))
    assert bnn_train("task=evaluate", "from=run").code == 0
    result = json.loads((run / "evaluation.json").read_text())
    wrong = [i for i, row in enumerate(result["confusion"]) for j, n in enumerate(row) for _ in range(n) if i != j]
    assert len(result["mistakes"]) == len(wrong) > 0
    assert [m["probability"] for m in result["mistakes"]] == sorted(
        (m["probability"] for m in result["mistakes"]), reverse=True
    )
    digits = read("digits")
    assert all(m["name"] == names[m["row"]] and m["class"] == str(digits.test_labels[m["row"]]) for m in result["mistakes"])
    page = (run / "report.html").read_text()
    worst = result["mistakes"][0]
    assert f"photos/&lt;{worst['row']}&gt;.png" in page and "evaluation.json" in page and page.count("<img") == 3


def test_written_files_have_the_permissions_of_new_files(run, tmp_path):
    (tmp_path / "new").write_text("")
    expected = (tmp_path / "new").stat().st_mode
    files = [file for file in run.rglob("*") if file.is_file()]
    assert len(files) >= 11 and {file.stat().st_mode for file in files} == {expected}


TWINS = {
    "mlp": ("model.hidden_size=16",),
    "bncvl": ("model=bncvl", "model.channels=[4,6]", "model.dense=[8]"),
    "vgg": ("model=vgg", "model.channels=[4,6]"),
}


@pytest.mark.parametrize("model", rest_slow(TWINS))
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
        (["task=evaluate", "from=run/model.safetensors", "which=best"], "which=best"),
        (["task=evaluate", "from=run", "which=newest"], "which=newest"),
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
    from bnn_exp.commands.benchmark import inference, inference_speed

    monkeypatch.setattr(inference_speed, "LAYERS", ((64, 32, 1),))
    monkeypatch.setattr(inference, "measure", partial(inference_speed.measure, batches=(1, 16), rounds=3))
    done = bnn_train("task=benchmark", "from=run")
    assert done.code == 0, done.err
    found = json.loads((run / "benchmark.json").read_text())
    for row in [*found["network"], *found["layers"]]:
        assert row["low"] <= row["median"] <= row["high"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["median"])
    assert {row["batch"] for row in found["network"]} == {1, 16}
    assert found["files"]["model.safetensors"] == (run / "model.safetensors").stat().st_size
    assert (run / "benchmark.png").exists() and "packed is" in done.out
    assert done.out.count("measuring the network") == 2 and "measuring a layer 64 → 32" in done.out
    alone = bnn_train("task=benchmark", "model.hidden_size=32", "hydra.run.dir=configured")
    assert alone.code == 0, alone.err
    files = json.loads((run.parent / "configured/benchmark.json").read_text())["files"]
    # the two files differ only in their configuration
    assert abs(files["model.safetensors"] - found["files"]["model.safetensors"]) < 200


def test_what_no_test_row_reads_is_refused_of_their_dataset(bnn_train, run, tmp_path):
    folder = other_data(tmp_path / "data")
    for task in ("evaluate", "export"):
        done = bnn_train(f"task={task}", "from=run", "dataset=local", f"dataset.path={folder}", "dataset.fit=crop")
        assert done.code == 2 and done.err.startswith("bnn-train: dataset.fit=crop: "), done.err
        assert not (run / "evaluations").exists() and not (run / "export").exists()
