"""Folders that are easily misread: the reader finds the right rows, or tells the user what to set."""

import csv
import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import idx, own, picture, pictures, refused, table
from PIL import Image

from bnn_exp.data.images import Pixels, read_image
from bnn_exp.data.sources import read


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def counts(data) -> tuple[int, int]:
    return len(data.train_labels), len(data.test_labels)


@pytest.mark.parametrize(
    "splits",
    [
        ("training_set/", "test_set/"),
        ("seg_train/seg_train/", "seg_test/seg_test/"),
        ("train2017/", "val2017/"),
        ("images/train/", "images/test/"),
    ],
)
def test_splits_by_customary_names(splits):
    pictures("d", "ab", splits=splits)
    Path("d/docs").mkdir()
    picture().save("d/docs/figure.png")
    data = own("d")
    assert data.classes == ("a", "b") and counts(data) == (8, 8)
    assert "1 image is not read: docs/figure.png" in data.warnings or splits[0].startswith("images")


def test_a_picture_beside_the_splits_is_not_a_row():
    pictures("d", "ab")
    picture().save("d/sample.png")
    data = own("d")
    assert counts(data) == (8, 8) and "1 image is not read: sample.png" in data.warnings


def test_a_class_alone_in_a_split_is_a_class():
    pictures("d", ["train"], splits=("train/",)), pictures("d", ["bus", "train"], splits=("test/",))
    data = own("d")
    assert data.classes == ("bus", "train") and counts(data) == (4, 8)


def test_classes_with_a_split_in_each_and_a_stray_picture():
    """The stray image changes the rows of no split, whichever layout is read first."""
    for name in ("cat", "dog"):
        pictures(f"d/{name}", ("train", "test"), splits=("",))
    clean = own("d")
    picture().save("d/cover.png"), picture().save("d/cat/thumb.png")
    data = own("d")
    assert counts(clean) == counts(data) == (8, 8) and data.key == clean.key and len(data.warnings) == 1


def test_the_layout_is_part_of_what_the_cache_knows():
    """Reads bare class folders, then the same files with a table, then without it: the third result equals the first."""
    pictures("d", "ab", n=10, splits=("",))
    bare = own("d")
    files = sorted(Path("d").rglob("*.png"))
    rows = [(file.relative_to("d").as_posix(), "test" if i % 4 == 0 else "train", "xy"[i % 2]) for i, file in enumerate(files)]
    Path("d/metadata.csv").write_text("file_name,split,label\n" + "\n".join(map(",".join, rows)))
    listed = own("d")
    Path("d/metadata.csv").unlink()
    assert listed.classes == ("x", "y") and counts(listed) == (15, 5) and own("d").key == bare.key != listed.key


def test_test_rows_alone_can_be_evaluated_on_and_not_trained_on(bnn_train):
    pictures("d", "ab", splits=("test/",))
    assert counts(own("d")) == (0, 8)
    done = bnn_train("dataset=local", "dataset.path=d")
    assert done.code == 2 and "dataset.path=" in done.err and "no train rows" in done.err


def test_bare_folders_are_evaluated_on_whole(bnn_train):
    dark, light = (lambda v=v: Image.fromarray(np.full((8, 8), v, np.uint8) + np.arange(8, dtype=np.uint8)) for v in (10, 200))
    for name, make in (("a", dark), ("b", light)):
        pictures("d", [name], n=8, make=make)
        pictures("other", [name], n=5, make=light if name == "a" else dark, splits=("",))  # all labels are wrong here
    small = ("model.hidden_size=8", "trainer.epochs=30", "trainer.batch_size=4")
    assert bnn_train("dataset=local", "dataset.path=d", *small, "hydra.run.dir=r").code == 0
    assert bnn_train("task=evaluate", "from=r", "dataset.path=other").code == 0
    (file,) = Path("r/evaluations").glob("*.json")
    found = json.loads(file.read_text())
    assert found["rows"] == 10 and found["data"]["split"] == "all" and found["accuracy_float"] < 60
    assert {mistake["name"][:2] for mistake in found["mistakes"]} <= {"a/", "b/"} and file.with_suffix(".png").is_file()


def listing(rows, name="metadata.csv", head="file_name,label"):
    with Path("t", name).open("w", newline="") as stream:
        csv.writer(stream).writerows([head.split(","), *rows])


@pytest.fixture
def listed():
    """Returns a folder with t/img/a/0.png … and t/img/b/0.png …, without splits."""
    pictures("t/img", "ab", splits=("",))
    return [(file.relative_to("t").as_posix(), file.parent.name) for file in sorted(Path("t").rglob("*.png"))]


def test_a_table_that_names_a_picture_wrongly_is_refused(listed):
    Path("t/img/b/3.png").unlink()
    listing(listed)
    assert "row 7 names 'img/b/3.png', which does not exist" in refused("t")
    listing([*listed[:7], listed[0]])
    assert "img/a/0.png is named twice" in refused("t")
    listing(
        [(file, "holdout" if i == 2 else " test ", name) for i, (file, name) in enumerate(listed[:7])],
        head="file_name,split,label",
    )
    assert "split='holdout' in row 2 is no split" in refused("t")


def test_a_table_about_something_else_leaves_the_class_folders_alone(listed):
    for text, head in (("camera", "file_name,camera"), ("a caption of its own", "file_name,text")):
        listing([(file, f"{text} {i}") for i, (file, _) in enumerate(listed)], head=head)
        assert own("t").classes == ("a", "b")
    listing([(file, name) for file, name in listed], "metadata_old.csv")
    assert own("t").classes == ("a", "b")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_tables_as_other_programs_write_them(listed, encoding):
    rows = [f"{file.replace('/', chr(92))};x;{'é' if name == 'a' else name}" for file, name in listed]
    Path("t/metadata.csv").write_bytes("\r\n".join(['File Name;"a; b";Label', *rows, "", ""]).encode(encoding))
    assert own("t").classes == ("b", "é") and own("t").train_labels.tolist().count(1) == 3


def test_pixel_csv_by_the_names_of_its_columns():
    import pandas

    digits = read("digits")
    frame = pandas.DataFrame(digits.train_images[:40].reshape(40, 64), columns=[f"p{i}" for i in range(64)])
    frame.insert(64, "number", digits.train_labels[:40])
    Path("c").mkdir()
    frame.to_csv("c/train.csv", index=False)
    assert "no column is called label" in refused("c")
    assert own("c", label="number").classes == tuple("0123456789")
    frame.to_csv("c/train.csv")  # pandas writes an index column
    frame.sample(frac=1, axis=1, random_state=0).to_csv("c/test.csv")
    data = own("c", label="number")
    assert np.array_equal(data.train_images, data.test_images) and np.array_equal(data.train_labels, digits.train_labels[:40])
    for file in Path("c").iterdir():
        file.unlink()
    frame.to_csv("c/optdigits.csv", index=False, header=False)  # UCI puts the labels into the last column
    assert own("c").classes == tuple("0123456789")
    gzipped = gzip.compress(Path("c/optdigits.csv").read_bytes())
    Path("c/optdigits.csv").unlink()
    Path("c/train.csv.gz").write_bytes(gzipped)
    assert own("c").classes == tuple("0123456789")


def test_columns_of_a_parquet_of_pixels_in_another_order():
    import pandas

    digits = read("digits")
    frame = pandas.DataFrame(digits.train_images[:40].reshape(40, 64), columns=[f"{i // 8}x{i % 8}" for i in range(64)])
    frame.insert(0, "label", digits.train_labels[:40])
    Path("p").mkdir()
    frame.to_parquet("p/train.parquet")
    frame.sample(frac=1, axis=1, random_state=0).to_parquet("p/test.parquet")
    data = own("p")
    assert np.array_equal(data.test_images, digits.train_images[:40]) and np.array_equal(data.train_images, data.test_images)


def test_several_datasets_in_a_folder_are_not_one():
    digits = read("digits")
    for place in ("tv/MNIST/raw", "tv/FashionMNIST/raw"):
        Path(place).mkdir(parents=True)
        for split, n in (("train", 20), ("t10k", 10)):
            Path(place, f"{split}-images-idx3-ubyte").write_bytes(idx(digits.train_images[:n, 0]))
            Path(place, f"{split}-labels-idx1-ubyte").write_bytes(idx(digits.train_labels[:n].astype(np.uint8)))
    assert "IDX files of several datasets: FashionMNIST/raw, MNIST/raw" in refused("tv")
    assert counts(own("tv/MNIST")) == (20, 10)
    Path("n").mkdir()
    x, y = digits.train_images[:200, 0], digits.train_labels[:200]
    for i in (1, 2):
        np.savez(f"n/batch_{i}.npz", x=x, y=y)
    assert "several datasets of train rows: batch_1.npz, batch_2.npz" in refused("n")
    Path("n/batch_2.npz").unlink()
    np.savez("n/batch_1.npz", x=x, coarse_labels=y // 5, fine_labels=y, x_aug=x[::-1], image_ids=y)
    assert own("n", label="fine_labels").classes == tuple("0123456789") and len(own("n", label="coarse_labels").classes) == 2
    pictures("p", "ab")
    assert "dataset.label=x: class folders have no columns" in refused("p", label="x")


def test_a_shard_that_is_missing_is_missed():
    table(Path("s/train-00000-of-00002.parquet"), [0, 1], ["a", "b"])
    table(Path("s/test-00000-of-00001.parquet"), [0, 1], ["a", "b"])
    assert "1 of 2 files of train are there" in refused("s")
    table(Path("s/train-00001-of-00002.parquet"), [1, 1], ["a", "b"])
    assert counts(own("s")) == (4, 2)


def test_a_files_own_name_says_its_split_before_its_folders():
    for split in ("train", "test"):
        table(Path(f"training_data/{split}.parquet"), [0, 1], ["a", "b"])
    Path("readme").mkdir()
    assert counts(own("training_data")) == counts(own(".")) == (2, 2)


def test_values_have_one_range_in_all_splits():
    digits = read("digits")
    x, y = digits.train_images[:20, 0], digits.train_labels[:20]
    Path("n").mkdir()
    np.savez("n/d.npz", x_train=x / 255, y_train=y, x_test=x, y_test=y)
    assert "different ranges (train 0 to 1, test 0 to 255)" in refused("n")
    np.savez("n/d.npz", x_train=x > 99, y_train=y, x_test=x > 99, y_test=y)
    assert set(np.unique(own("n").train_images)) == {0, 255}
    np.savez("n/d.npz", x_train=(x > 99).astype(int), y_train=y, x_test=(x > 99).astype(int), y_test=y)
    assert "the images are dark: no value is above 1 of 255" in own("n").warnings[0]


def test_a_stated_range_is_of_arrays_and_wide_pictures_alone():
    rng = np.random.default_rng(0)
    grey = [rng.integers(0, 200, (8, 8)).astype(np.uint8) for _ in range(16)]
    rest = iter(grey)
    pictures("g", "ab", make=lambda: Image.fromarray(next(rest)))
    assert own("g", range=(-1, 1)).key == own("g").key
    rest = iter(grey)
    pictures("w", "ab", make=lambda: Image.fromarray(next(rest).astype(np.uint16)))
    assert own("w", range=(0, 255)).key == own("g").key


@pytest.mark.parametrize("size", [None, 16])
def test_a_jpeg_has_the_pixels_of_training_in_prediction(size):
    rng = np.random.default_rng(0)
    pictures("j", "ab", make=lambda: Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), suffix="jpg")
    settings = {"size": size, "channels": 1, "fit": "crop"}
    data = own("j", **settings)
    alone = read_image(Path("j/test/b/2.jpg"), data.test_images.shape[1:], Pixels.of_settings(settings))
    assert np.array_equal(alone, data.test_images[6])


def test_archives_within_archives_and_broken_ones():
    plain = own(pictures("a", "ab"))
    with zipfile.ZipFile("inner.zip", "w") as archive:
        for file in Path("a").rglob("*.png"):
            archive.write(file)
    with zipfile.ZipFile("outer.zip", "w") as archive:
        archive.write("inner.zip")
    assert own("outer.zip").key == plain.key
    with zipfile.ZipFile("odd.zip", "w") as archive:
        archive.writestr("a", b"x"), archive.writestr("a/b.png", b"x")
    Path("page.zip").write_text("<html>")
    for name in ("odd.zip", "page.zip"):
        assert f"{name} can't be unpacked" in refused(name)
