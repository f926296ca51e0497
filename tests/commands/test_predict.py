"""task=predict: the images that it finds, and the files that it writes. A damaged image does not affect the others."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bnn_exp import load_model
from bnn_exp.data import sources
from bnn_exp.deploy.predict import find

SMALL = ("trainer=smoke", "model.hidden_size=8", "trainer.epochs=1")


@pytest.fixture
def run(copy_of_run, tmp_path):
    return copy_of_run(tmp_path / "run", *SMALL)


@pytest.fixture
def pictures(tmp_path):
    """Writes four digits as a/0.png, a/b/1.tif, c/[2].ppm and c/café.gif; returns all test images of digits."""
    images = sources.read("digits").test_images
    for i, name in enumerate(("a/0.png", "a/b/1.tif", "c/[2].ppm", "c/café.gif")):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i, 0]).save(file)
    return images


def answers(directory):
    return json.loads((directory / "predictions.json").read_text())


def test_answers_are_those_of_the_network_in_csv_and_json(bnn_train, run, pictures, tmp_path):
    done = bnn_train("task=predict", "from=run", "input=[a,c]", "hydra.run.dir=out")
    assert done.code == 0 and "out" in done.err, done.err
    with torch.no_grad():
        expected = load_model(run)[0](torch.from_numpy(pictures[:4])).softmax(1)
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").open(encoding="utf-8")))
    found = answers(tmp_path / "out")
    assert [row["file"] for row in rows] == ["a/0.png", "a/b/1.tif", "c/[2].ppm", "c/café.gif"]
    for row, one, probabilities in zip(rows, found["predictions"], expected, strict=True):
        order = probabilities.argsort(descending=True)[:3].tolist()
        assert one["file"] == row["file"] and row["class"] == one["class"] == str(order[0])
        assert [top["class"] for top in one["top"]] == [row["class"], row["class_2"], row["class_3"]]
        assert sorted(float(top["probability"]) for top in one["top"]) == pytest.approx(sorted(probabilities[order].tolist()))
        assert float(row["probability"]) == pytest.approx(float(probabilities.max()))
    assert found["model"]["file"] == str(run / "model.safetensors") and found["model"]["sha256"] == load_model(run)[1]["sha256"]


def test_a_broken_file_is_named_and_the_others_are_answered(bnn_train, run, pictures, tmp_path):
    good = (tmp_path / "a/0.png").read_bytes()
    (tmp_path / "a/bad.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "a/worse.jpg").write_bytes(b"no picture")
    for junk in ("._0.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / "a" / junk).write_bytes(b"x")
    done = bnn_train("task=predict", "from=run", "input=a", "hydra.run.dir=out")
    assert (
        done.code == 0 and "2 not readable" in done.err and "a/bad.png" in done.err and "1 other file passed over" in done.err
    )
    assert "Traceback" not in done.err and len(done.err.splitlines()) == 4
    found = answers(tmp_path / "out")
    assert [one["file"] for one in found["predictions"]] == ["a/0.png", "a/b/1.tif"]
    assert [one["file"] for one in found["skipped"]] == ["a/bad.png", "a/worse.jpg"]


def test_a_network_that_normalises_by_the_batch_says_so(bnn_train, copy_of_run, pictures, tmp_path):
    """All images form one batch, with the answers of the network. A single image is refused."""
    run = copy_of_run(tmp_path / "run", *SMALL, "model.batch_norm.running_stats=false")
    done = bnn_train("task=predict", "from=run", "input=[a,c]", "hydra.run.dir=out")
    assert done.code == 0 and "depends on the other images" in done.err
    with torch.no_grad():
        expected = load_model(run)[0](torch.from_numpy(pictures[:4])).argmax(1)
    assert [one["class"] for one in answers(tmp_path / "out")["predictions"]] == [str(int(i)) for i in expected]
    alone = bnn_train("task=predict", "from=run", "input=a/0.png")
    assert alone.code == 2 and "running_stats=false" in alone.err and len(alone.err.splitlines()) == 2


def test_nothing_answered_is_bad_input_and_leaves_nothing(bnn_train, run, tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "x" / name).write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    done = bnn_train("task=predict", "from=run", "input=x")
    assert done.code == 2 and "x/1.png: not a readable image" in done.err and len(done.err.splitlines()) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_answers_are_never_written_over(bnn_train, run, pictures, tmp_path):
    assert bnn_train("task=predict", "from=run", "input=a", "hydra.run.dir=out").code == 0
    before = (tmp_path / "out/predictions.csv").read_bytes()
    done = bnn_train("task=predict", "from=run", "input=c", "hydra.run.dir=out")
    assert done.code == 2 and "out/predictions.csv" in done.err
    assert (tmp_path / "out/predictions.csv").read_bytes() == before
    assert bnn_train("task=predict", "from=run", "input=c").code == 0
    assert len(list(tmp_path.glob("outputs/*/*predict*/predictions.csv"))) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a"], ["a/0.png", "a/b/1.tif"]),
        (["a/"], ["a/0.png", "a/b/1.tif"]),
        (["**/*.tif"], ["a/b/1.tif"]),
        (["c/*"], ["c/[2].ppm", "c/café.gif"]),
        (["c/[2].ppm"], ["c/[2].ppm"]),
        (["c/*.gif", "a/0.png", "c"], ["c/café.gif", "a/0.png", "c/[2].ppm"]),
        (["?"], ["a/0.png", "a/b/1.tif", "c/[2].ppm", "c/café.gif"]),
    ],
)
def test_files_folders_lists_and_patterns(pictures, tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    assert [str(file) for file in find(given).images] == expected


def test_links_to_folders_are_followed_once(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all").mkdir()
    (tmp_path / "all/c").symlink_to(tmp_path / "c")
    (tmp_path / "c/round").symlink_to(tmp_path / "c")
    assert [str(file) for file in find(["all"]).images] == ["all/c/[2].ppm", "all/c/café.gif"]


def test_names_that_are_no_utf8_and_markup_are_answered(bnn_train, run, pictures, tmp_path):
    names = ["bolt [m4].png", "[bold]x[", os.fsdecode(b"caf\xe9.png"), "$x_$ <b>.png", "a\nb.png", "😀" * 50 + ".png"]
    names = [name if name.endswith(".png") else f"{name}.png" for name in names]
    (tmp_path / "odd").mkdir()
    for name in names:
        shutil.copy(tmp_path / "a/0.png", tmp_path / "odd" / name)
    done = bnn_train("task=predict", "from=run", "input=odd", "hydra.run.dir=out")
    assert done.code == 0 and "bolt [m4].png" in done.out and "[bold]x[.png" in done.out and "caf\\udce9" in done.out
    assert {one["file"] for one in answers(tmp_path / "out")["predictions"]} == {f"odd/{name}" for name in names}
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == len(names) and {"odd/a\nb.png", "odd/$x_$ <b>.png"} <= {row["file"] for row in rows}


def test_of_many_answers_the_console_shows_the_first_and_the_last(bnn_train, run, tmp_path):
    (tmp_path / "many").mkdir()
    for i in range(300):
        Image.fromarray(np.full((8, 8), i % 256, np.uint8)).save(tmp_path / f"many/{i:03}.png")
    done = bnn_train("task=predict", "from=run", "input=many", "hydra.run.dir=out")
    shown = [line.split()[1] for line in done.out.splitlines() if ".png" in line]
    assert shown == [f"many/{i:03}.png" for i in (*range(30), *range(290, 300))] and "260 more" in done.out
    assert len(answers(tmp_path / "out")["predictions"]) == 300


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_pictures_are_read_as_in_training(bnn_train, tmp_path, fit):
    """Every test image, wide or transparent or coloured, gets the same answer as in the evaluation."""
    rng = np.random.default_rng(3)
    for split, count in (("train", 12), ("test", 8)):
        for name in "ab":
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for i in range(count):
                shape = (12, 20, 4) if i % 2 else (9, 7)
                values = rng.integers(0, 256 if i % 2 else 65536, shape).astype(np.uint8 if i % 2 else np.uint16)
                Image.fromarray(values).save(tmp_path / f"d/{split}/{name}/{i}.png")
    settings = ("dataset.size=8", f"dataset.fit={fit}", "dataset.background=grey", "dataset.channels=1")
    rule = ("optimizer=hypermask_top", "delta=0.1", "trainer.epochs=2", "trainer.batch_size=8")
    run = ("dataset=local", "dataset.path=d", *settings, "model.hidden_size=64", *rule)
    assert bnn_train(*run, "hydra.run.dir=r").code == 0
    assert bnn_train("task=evaluate", "from=r").code == 0
    assert bnn_train("task=predict", "from=r", "input=d/test", "hydra.run.dir=p").code == 0
    mistakes = json.loads((tmp_path / "r/evaluation.json").read_text())["mistakes"]
    found = {
        Path(one["file"]).relative_to("d").as_posix(): (one["class"], one["probability"])
        for one in json.loads((tmp_path / "p/predictions.json").read_text())["predictions"]
    }
    wrong = {file: answer for file, answer in found.items() if answer[0] != Path(file).parts[1]}
    assert len(found) == 16 and wrong.keys() == {one["name"] for one in mistakes}
    for one in mistakes:
        assert wrong[one["name"]] == (one["answer"], pytest.approx(one["probability"], abs=1e-6))
    assert len({probability for _, probability in found.values()}) > 8, "else this shows nothing"
