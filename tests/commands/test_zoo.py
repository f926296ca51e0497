"""zoo/NAME: networks of the package stand wherever a run may stand, and nothing is written into the package."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, plain_config, random_images, write_dataset

from bnn_exp import load_model, load_packed
from bnn_exp.bits import bits_sha256
from bnn_exp.config import zoo
from bnn_exp.errors import UserError
from bnn_exp.nn.norm import running_norms
from bnn_exp.records import probe_logits
from bnn_exp.records.files import file_sha256
from bnn_exp.records.restore_norms import NORMS

NAMES = zoo.names()
SMALLEST = min(NAMES, key=lambda name: zoo.located(name).joinpath("model.safetensors").stat().st_size)


@pytest.fixture
def untouched():
    """Fails if the test changes a file of the zoo."""
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(zoo.FOLDER.rglob("*"))}
    yield
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(zoo.FOLDER.rglob("*"))} == before


def without_data(monkeypatch):
    def read(dataset):
        raise UserError(f"dataset={dataset.name}: not here")

    monkeypatch.setattr("bnn_exp.training.plan.read", read)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_what_its_experiment_describes(name):
    config = load_model(name)[1]["config"]
    composed = plain_config(f"experiment={name.removeprefix('zoo/')}")
    assert config == {key: composed[key] for key in config} and config["dataset"]["path"] is None


def test_the_page_states_the_files():
    rows = re.findall(
        r"^\| `(zoo/\w+)` \| ([\d.]+) \| ([\d,]+) \| `(\w+)` \| `(\w+)` \|$", (ROOT / "docs/zoo.md").read_text(), re.M
    )
    assert [row[0] for row in rows] == NAMES
    for name, accuracy, size, of_file, of_bits in rows:
        folder = zoo.located(name)
        file = folder / "model.safetensors"
        assert json.loads((folder / "summary.json").read_text())["test_accuracy"] == pytest.approx(float(accuracy), abs=0.005)
        assert file.stat().st_size == int(size.replace(",", "")) and file_sha256(file) == of_file
        assert bits_sha256(load_model(name)[0]) == of_bits


@pytest.mark.parametrize("name", NAMES)
def test_a_network_loads_in_any_folder_packed_and_trainable(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network, about = load_model(name)
    pixels = probe_logits.pixels(tuple(about["image_shape"]), 50)
    with torch.no_grad():
        expected = network(pixels)
        assert torch.equal(load_packed(name)[0](pixels).argmax(1), expected.argmax(1))
        if not (zoo.located(name) / NORMS).is_file():
            with pytest.raises(UserError, match="statistics"):
                network.train()
            return
        network.train().eval()  # restores the statistics of BatchNorm from the small file
        assert all(norm.running_var.ne(1).any() for _, norm in running_norms(network))
        assert torch.allclose(network(pixels), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_an_unknown_name_lists_the_names(bnn_train):
    wrong = SMALLEST[:-1] + "x"
    for arguments in (
        ["task=evaluate", f"from={wrong}"],
        [f"init_from={wrong}"],
        ["task=predict", f"from={wrong}", "input=a.png"],
    ):
        done = bnn_train(*arguments)
        assert done.code == 2 and f"did you mean {SMALLEST}?" in done.err and all(name in done.err for name in NAMES)
        assert len(done.err.splitlines()) == 2
    with pytest.raises(UserError, match=f"{wrong}.*\nallowed: .*{SMALLEST}"):
        load_model(wrong)
    done = bnn_train("task=evaluate", f"from={SMALLEST}", "which=best")
    assert done.code == 2 and "has one network" in done.err and len(done.err.splitlines()) == 2


def test_a_network_of_the_zoo_is_no_run_to_resume(bnn_train):
    done = bnn_train("resume=zoo/mnist_vgg")
    assert done.code == 2 and "init_from=zoo/mnist_vgg" in done.err and len(done.err.splitlines()) == 2


def test_a_folder_of_the_user_wins(bnn_train, tmp_path):
    expected, other = load_model(SMALLEST)[1], next(name for name in NAMES if name != SMALLEST)
    shutil.copytree(zoo.located(other), tmp_path / SMALLEST)
    assert load_model(SMALLEST)[1]["sha256"] == load_model(other)[1]["sha256"] != expected["sha256"]
    assert zoo.located(SMALLEST) == Path(SMALLEST)
    done = bnn_train("task=export", f"from={SMALLEST}", "dataset.path=nowhere")
    assert done.code == 2 and "nowhere" in done.err


def test_results_go_to_a_new_directory(bnn_train, tmp_path, monkeypatch, untouched):
    """Without the data an export is compared on random pixels, and says so."""
    without_data(monkeypatch)
    done = bnn_train("task=export", f"from={SMALLEST}", "export.format=c")
    assert done.code == 0 and "1,000 images of random pixels" in done.err and "dataset.path=FOLDER" in done.err, done.err
    assert len(list(tmp_path.glob("outputs/*/*export*/network.c"))) == 1
    done = bnn_train("task=export", f"from={SMALLEST}", "export.format=c", "dataset.path=nowhere")
    assert done.code == 2 and "not here" in done.err


def test_evaluation_compares_with_the_data_that_it_is_given(bnn_train, tmp_path, untouched):
    data = write_dataset(tmp_path / "data", random_images(4, 28, 28), random_images(30, 28, 28), "0123456789")
    done = bnn_train("task=evaluate", f"from={SMALLEST}", f"dataset.path={data}")
    assert done.code == 0, done.err
    found = json.loads(next(tmp_path.glob("outputs/*/*evaluate*/evaluations/*.json")).read_text())
    assert found["different_predictions"] == 0 and found["rows"] == 30 and not found["data"]["own"]


@pytest.mark.slow
def test_fine_tuning_begins_with_the_bits(bnn_train, tmp_path, untouched):
    data = write_dataset(tmp_path / "data", random_images(40, 28, 28), random_images(10, 28, 28), "0123456789")
    done = bnn_train(
        f"init_from={SMALLEST}", "dataset=mnist", f"dataset.path={data}", "trainer.epochs=1", "freeze=1", "hydra.run.dir=run"
    )
    assert done.code == 0 and f"init_from={SMALLEST}: loaded" in done.out + done.err, done.err
    ours, theirs = load_model(tmp_path / "run")[0], load_model(SMALLEST)[0]
    name, frozen = next((name, tensor) for name, tensor in theirs.state_dict().items() if name.endswith("weight"))
    assert torch.equal(ours.state_dict()[name], frozen)
    assert f"init_from: {SMALLEST}" in (tmp_path / "run/config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if "mnist" in name and "fashion" not in name])
def test_the_accuracy_is_that_of_the_page(name, bnn_train, mnist_folder, tmp_path):
    done = bnn_train("task=evaluate", f"from={name}", f"dataset.path={mnist_folder}")
    assert done.code == 0, done.err
    found = json.loads(next(tmp_path.glob("outputs/*/*evaluate*/evaluations/*.json")).read_text())
    assert found["different_predictions"] == 0 and found["data"]["own"]
    assert found["accuracy_float"] == pytest.approx(found["summary_accuracy"], abs=0.05)


@pytest.mark.slow
def test_a_wheel_and_an_sdist_hold_the_networks(tmp_path):
    pytest.importorskip("hatchling")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        source = [name.partition("/")[2] for name in archive.getnames()]
    for file in zoo.FOLDER.rglob("*.*"):
        name = f"bnn_exp/{Path(file).relative_to(zoo.FOLDER.parent)}"
        assert name in wheel and name in source


def test_pictures_are_predicted_in_the_size_of_the_network(bnn_train, tmp_path, untouched):
    from PIL import Image

    Image.fromarray(np.full((40, 30, 3), 250, np.uint8)).save(tmp_path / "paper.png")
    done = bnn_train("task=predict", f"from={SMALLEST}", "input=paper.png", "hydra.run.dir=out")
    assert done.code == 0 and "predict.centre=true" in done.err and (tmp_path / "out/predictions.csv").is_file()
