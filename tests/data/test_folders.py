"""Folders as users have them: the rows that the reader finds are the rows that a person sees there."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, idx, own, picture, pictures, refused, table
from PIL import Image

from bnn_exp.data.sources import read


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def array(file):
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("classes", [("bus", "train"), ("test", "val"), ("train", "test"), ("validation", "x")])
def test_the_top_folder_alone_decides_the_split(classes):
    data = own(pictures("voc", classes))
    assert data.classes == tuple(sorted(classes)) and len(data.train_labels) == len(data.test_labels) == 8
    assert np.array_equal(data.train_images[0], array(f"voc/train/{data.classes[0]}/0.png").transpose(2, 0, 1))


def test_a_class_called_train_among_bare_class_folders_is_a_class():
    data = own(pictures("voc", ("bus", "train", "car"), n=10, splits=("",)))
    assert data.classes == ("bus", "car", "train") and len(data.train_labels) == 24 and len(data.test_labels) == 6
    assert np.bincount(data.test_labels).tolist() == [2, 2, 2]  # every class gives two test rows
    assert "6 of 30 rows serve as such" in " ".join(data.notes) and not data.own_test
    more = own("voc", test_fraction=0.5)
    assert len(more.test_labels) == 15 and more.key != data.key


def test_class_folders_that_hold_splits():
    """Reads CLASS/train and CLASS/test, the layout of MVTec's data."""
    for name in ("bolt", "nut"):
        pictures(f"m/{name}", ("train", "test"), splits=("",))
    data = own("m")
    assert data.classes == ("bolt", "nut") and len(data.train_labels) == len(data.test_labels) == 8


def test_splits_in_any_case_and_by_other_words():
    pictures("k", "ab", splits=("Training/", "VAL/", "Test/"))
    data = own("k")
    assert [len(labels) for labels in (data.train_labels, data.validation_labels, data.test_labels)] == [8, 8, 8]
    pictures("v", "ab", splits=("TRAIN/", "valid/"))
    assert len(own("v").test_labels) == 8 and "validation rows serve as test rows" in " ".join(own("v").notes)


def test_a_folder_around_the_dataset_and_what_systems_leave_there():
    pictures("zip/photos/2024", "ab")
    for stray in ("zip/photos/2024/.DS_Store", "zip/photos/2024/train/a/._0.png", "zip/photos/2024/test/b/Thumbs.db"):
        Path(stray).write_bytes(b"\0\5\26\7")
    pictures("zip/__MACOSX", "ab", splits=("train/",))
    data = own("zip")
    assert len(data.train_labels) == 8 and data.notes == () and data.key == own("zip/photos/2024").key
    Path("zip/photos/2024/readme.txt").write_text("mine")
    pictures("zip/photos/2024/other", [""], splits=("",), n=2)
    again = own("zip")
    assert again.key == data.key and "1 file is not read: readme.txt" in again.notes
    assert "2 images of the folder are not read: other/0.png …" in again.warnings


def test_links_to_class_folders_are_followed_and_circles_are_not():
    pictures("lk", "ab"), pictures("s", "c")
    for split in ("train", "test"):
        Path(f"lk/{split}/c").symlink_to(Path(f"s/{split}/c").absolute())
    Path("lk/train/a/up").symlink_to(Path("lk").absolute())
    data = own("lk")
    assert data.classes == ("a", "b", "c") and len(data.train_labels) == 12
    Path("lk/train/a/9.png").symlink_to("/nowhere/9.png")
    assert "lk/train/a/9.png can't be read (No such file or directory)" in refused("lk")


def test_wide_pictures_are_scaled():
    rng = np.random.default_rng(1)
    wide = [rng.integers(0, 65536, (8, 8)).astype(np.uint16) for _ in range(16)]
    rest = iter(wide)
    data = own(pictures("w", "ab", make=lambda: Image.fromarray(next(rest))))
    expected = np.rint(np.stack(wide[:8]) / 257).astype(np.uint8)
    assert np.array_equal(data.train_images[:, 0], expected) and data.train_images.shape == (8, 1, 8, 8)
    floats = [rng.random((8, 8), dtype=np.float32) for _ in range(16)]
    rest = iter(floats)
    data = own(pictures("f", "ab", make=lambda: Image.fromarray(next(rest)), suffix="tif"))
    assert np.array_equal(data.train_images[:, 0], np.rint(np.stack(floats[:8]) * 255).astype(np.uint8))
    pictures("i", "ab", make=lambda: Image.fromarray(np.full((8, 8), 70000, np.int32)), suffix="tif")
    assert "32-bit integers from 70000 to 70000: dataset.range=[LOW,HIGH]" in refused("i").replace("\n", " ")
    assert (own("i", range=(0, 140000)).train_images == 128).all()


def test_transparency_is_laid_on_a_ground():
    stroke = np.zeros((8, 8, 4), np.uint8)
    stroke[2, :, 3] = 255
    stroke[3, :, 3] = 128
    pictures("ink", "ab", make=lambda: Image.fromarray(stroke))
    for ground, value in (("white", 255), ("black", 0), ("grey", 128), ("#0000ff", (0, 0, 255))):
        rows = own("ink", background=ground).train_images[0].transpose(1, 2, 0)
        assert (rows[0] == value).all() and (rows[2] == 0).all()
        assert (abs(rows[3].astype(int) - np.multiply(value, 127 / 255)) <= 1).all()
    pictures("la", "ab", make=lambda: Image.fromarray(stroke[..., 2:]))
    assert own("la").train_images.shape == (8, 1, 8, 8) and (own("la").train_images[0, 0, 0] == 255).all()
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    palette.info["transparency"] = 0
    pictures("p", "ab", make=lambda: palette)
    assert (own("p").train_images[0, :, 0, 0] == 255).all() and (own("p").train_images[0, :, 0, 1] == 1).all()


def test_one_coloured_picture_among_grey_ones_makes_all_of_them_coloured():
    pictures("m", "ab", n=100, make=lambda: picture().convert("L"))
    picture().save("m/test/b/57.png")
    data = own("m")
    assert data.train_images.shape == (200, 3, 8, 8)
    assert np.array_equal(data.test_images[157 - 57 + 0 + 57 - 57 + 0 - 0], data.test_images[100])
    grey = own("m", channels=1)
    assert grey.train_images.shape == (200, 1, 8, 8) and np.array_equal(grey.train_images[0, 0], array("m/train/a/0.png"))


def test_relative_folders_named_like_a_loader():
    pictures("imagefolder", "ab"), pictures("other", "ab", n=10)
    assert len(own("imagefolder").train_labels) == 8


def test_content_alone_decides_not_times_and_every_suffix_counts():
    for n in (6, 10):
        for split in ("train", "test"):
            table(Path(f"rep/{split}.parquet"), [0, 1] * (n // 2), ["a", "b"])
            os.utime(f"rep/{split}.parquet", (9e8, 9e8))
        assert len(own("rep").train_labels) == n
    for suffix in ("tif", "gif", "ppm", "bmp", "webp", "jpg"):
        pictures(suffix, "ab", suffix=suffix)
        before = own(suffix)
        Image.new("RGB", (8, 8)).save(f"{suffix}/train/a/0.{suffix}")
        after = own(suffix)
        assert len(before.train_labels) == 8 and after.key != before.key and not after.train_images[0].any()


def test_a_stray_file_or_another_place_is_the_same_data():
    first = own(pictures("x", "ab"))
    Path("x/train/a/._0.png").write_bytes(b"no picture")
    shutil.move("x", "y")
    assert own("y").key == first.key


def test_classes_are_matched_by_name_across_splits_and_files():
    images = [picture() for _ in range(4)]
    table(Path("o/train.parquet"), [0, 1], ["cat", "dog"], images[:2])
    table(Path("o/test.parquet"), [1, 0], ["dog", "cat"], images[:2])
    data = own("o")
    assert data.classes == ("cat", "dog") and data.train_labels.tolist() == data.test_labels.tolist() == [0, 1]
    table(Path("o/train-2.parquet"), [0, 1], ["emu", "cat"], images[2:])  # this shard lists other class names
    data = own("o")
    assert [data.classes[i] for i in data.train_labels] == [
        "emu",
        "cat",
        "cat",
        "dog",
    ]  # rows follow the order of the file names
    table(Path("n/train.parquet"), [0, 1], ["cat", "dog"])
    table(Path("n/test.parquet"), [0, 1], ["0", "1"])
    assert "the test rows have other classes (0, 1) than the train rows (cat, dog)" in refused("n")


def test_accents_written_in_two_ways_are_one_class():
    pictures("u", ["caf\u00e9", "b"], splits=("train/",)), pictures("u", ["cafe\u0301", "b"], splits=("test/",))
    data = own("u")
    assert data.classes == ("b", "caf\u00e9") and np.bincount(data.test_labels).tolist() == [4, 4]


def test_names_that_are_no_utf_8():
    data = own(pictures("e", ["a", "caf\udce9"]))
    assert data.classes == ("a", "café") and json.dumps(data.classes)
    assert data.test_names[-1] == "test/café/3.png"


def test_a_null_is_named_and_a_label_that_is_missing_too():
    for split in ("train", "test"):
        table(Path(f"n/{split}.parquet"), [0, 1], ["a", "b"], [picture(), None])
    assert "train image 1 can't be decoded (the image is missing)" in refused("n")
    table(Path("l/train.parquet"), [0, None, 1], ["a", "b"])
    assert "train image 1 has no label" in refused("l")


def test_odd_but_usable_data_are_warned_of():
    pictures("m", "abc")
    shutil.rmtree("m/train/b")
    Image.new("RGB", (8, 8), (9, 9, 9)).save("m/test/c/2.png")
    Path("m/test/a/0.png").write_bytes(Path("m/train/a/1.png").read_bytes())
    warnings = " | ".join(own("m").warnings)
    assert "1 class has no train rows: b" in warnings and "1 test image has only one colour: test/c/2.png" in warnings
    assert "1 of 12 test images are train images too" in warnings


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([10, 2, 2, 10], ("2", "10"), [1, 0, 0, 1]),
        (["dog", "cat", "cat", "dog"], ("cat", "dog"), [1, 0, 0, 1]),
        ([True, False, False, True], ("false", "true"), [1, 0, 0, 1]),
    ],
)
def test_labels_of_any_kind_become_classes(labels, classes, numbers):
    for split in ("train", "test"):
        table(Path(f"t/{split}.parquet"), labels, None)
    data = own("t")
    assert data.classes == classes and data.train_labels.tolist() == numbers


def test_a_plain_parquet_of_pandas():
    import pandas

    files = sorted(pictures("x", "ab").glob("train/*/*.png"))
    frame = pandas.DataFrame(
        {"id": range(8), "image": [f.read_bytes() for f in files], "label": [f.parent.name for f in files]}
    )
    Path("p").mkdir()
    frame.to_parquet("p/train.parquet"), frame.to_parquet("p/test.parquet")
    assert np.array_equal(own("p").train_images, own("x").train_images) and own("p").classes == ("a", "b")
    frame["label"] = frame["label"].astype("category")
    frame["image"] = [{"bytes": cell, "path": None} for cell in frame["image"]]
    frame.to_parquet("p/train.parquet")
    assert np.array_equal(own("p").train_images, own("x").train_images) and own("p").classes == ("a", "b")
    frame.drop(columns="label").to_parquet("p/train.parquet")
    assert "its columns are id (int64), image" in refused("p")


def test_a_table_names_the_pictures():
    pictures("x", "ab")
    files = sorted(Path("x").rglob("*.png"))
    Path("t").mkdir()
    for i, file in enumerate(files):
        shutil.copy(file, f"t/{i}.png")
    kinds = ["10", "9", "10", "NA"] * 4
    Path("t/metadata.csv").write_text("file_name,label\n" + "".join(f"{i}.png,{kind}\n" for i, kind in enumerate(kinds)))
    data = own("t", test_fraction=0.25)
    assert data.classes == ("9", "10", "NA") and len(data.train_labels) == 12 and not data.warnings
    Path("t/metadata.csv").rename("t/labels.csv")
    Path("t/labels.csv").write_text(
        "id;split;class\n" + "".join(f"{i};{'train' if i < 12 else 'val'};{k}\n" for i, k in enumerate(kinds))
    )
    data = own("t")  # the table has names without suffix, a split column, and semicolons
    assert len(data.train_labels) == 12 and [data.classes[i] for i in data.train_labels[:4]] == kinds[:4]
    assert np.array_equal(data.train_images[3], array("t/3.png").transpose(2, 0, 1))
    Path("t/3.png").unlink()
    assert "labels.csv: row 3 names '3', which does not exist" in refused("t")


@pytest.fixture
def digits():
    """Returns images and labels of train and test: uint8 [n, 8, 8] and [n]."""
    data = read("digits")
    return [
        a
        for s in ("train", "test")
        for a in (getattr(data, f"{s}_images")[:40, 0], getattr(data, f"{s}_labels")[:40].astype(np.uint8))
    ]


def same(data, digits) -> bool:
    found = (data.train_images[:, 0], data.train_labels, data.test_images[:, 0], data.test_labels)
    return all(map(np.array_equal, found, digits)) and data.classes == tuple("0123456789")


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(digits, zipped):
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels.idx1-ubyte")
    Path("i/MNIST/raw").mkdir(parents=True)
    for name, values in zip(names, digits, strict=True):
        for file in (f"i/MNIST/raw/{name}", f"i/MNIST/raw/{name}.gz")[zipped:]:
            Path(file).write_bytes(gzip.compress(idx(values)) if file.endswith(".gz") else idx(values))
    assert same(own("i"), digits)
    file = next(Path("i").rglob("train-images*"))
    content = idx(digits[0])
    for damaged in (content[:-1], content + b"\0", b"\0\0\7\3" + content[4:], content[:9], b""):
        file.with_suffix("").write_bytes(damaged) if not zipped else file.write_bytes(gzip.compress(damaged))
        Path("i/MNIST/raw/train-images-idx3-ubyte").unlink(missing_ok=True) if zipped else None
        assert "can't be read" in refused("i")


def test_numpy_arrays(digits):
    x, y, u, v = digits
    Path("n").mkdir()
    for arrays in (
        {"x_train": x, "y_train": y, "x_test": u, "y_test": v},
        {"train_images": x[..., None], "train_labels": y[:, None], "test_images": u[..., None], "test_labels": v[:, None]},
        {"Xtrain": x / 255, "ytrain": np.eye(10)[y], "Xtest": u / 255, "ytest": np.eye(10)[v]},
        {"train_x": x.reshape(40, 64), "train_y": y, "test_x": u.reshape(40, 64), "test_y": v},
    ):
        np.savez_compressed("n/data.npz", **arrays)
        assert same(own("n"), digits) and same(own("n/data.npz"), digits)
    Path("n/data.npz").unlink()
    for name, values in arrays.items():
        np.save(f"n/{name}.npy", values)
    assert same(own("n"), digits)
    np.save("n/train_x.npy", x.reshape(40, 64) - 128.0)
    assert "its values are from -128 to" in refused("n") and own("n", range=(-128, 127)).train_images.max() == 255
    Path("n/test_x.npy").rename("n/other.npy")
    assert "no images belong to test_y" in refused("n")
    Path("n/other.npy").rename("n/test_x.npy")
    np.save("n/train_x.npy", np.array([{}] * 40))
    assert "can't be read (it holds object" in refused("n")


def test_csv_files_of_pixels(digits):
    x, y, u, v = digits
    Path("c").mkdir()
    for head in (True, False):
        for name, images, labels in (("mnist_train", x, y), ("mnist_test", u, v)):
            rows = np.column_stack([labels, images.reshape(40, 64)])
            header = ",".join(["label", *(f"pixel{i}" for i in range(64))]) if head else ""
            np.savetxt(f"c/{name}.csv", rows, "%d", ",", header=header, comments="")
        assert same(own("c"), digits)
    np.savetxt("c/mnist_test.csv", u.reshape(40, 64), "%d", ",", header=",".join(f"pixel{i}" for i in range(64)), comments="")
    data = own("c")  # Kaggle's test rows have no labels
    assert len(data.train_labels) + len(data.test_labels) == 40 and "mnist_test.csv" in " ".join(data.notes)
    text = Path("c/mnist_train.csv").read_text()
    Path("c/mnist_train.csv").write_text(text.replace("\n", ",x\n", 3))
    assert refused("c")


def test_tables_of_numbers(digits):
    import pandas

    x, y, u, v = digits
    Path("p").mkdir()
    for split, images, labels in (("train", x, y), ("test", u, v)):
        flat = images.reshape(40, 64)
        pandas.DataFrame({"label": labels, **{f"p{i}": flat[:, i] for i in range(64)}}).to_parquet(f"p/{split}.parquet")
        lines = [json.dumps({"image": a.tolist(), "label": int(n)}) for a, n in zip(images, labels, strict=True)]
        Path("j", split).mkdir(parents=True)
        Path("j", split, "rows.jsonl").write_text("\n".join(lines))
    assert same(own("p"), digits) and same(own("j"), digits)


def test_a_dataset_that_was_saved_to_disk():
    import datasets

    for split in ("train", "test"):
        table(Path(f"s/{split}.parquet"), [0, 1] * 4, ["a", "b"])
    files = {split: f"s/{split}.parquet" for split in ("train", "test")}
    datasets.load_dataset("parquet", data_files=files, cache_dir="hf").save_to_disk("d")
    assert own("d").key == own("s").key


@pytest.mark.parametrize("pack", ["zip", "tar.gz"])
def test_archives(pack):
    plain = own(pictures("a", "ab"))
    file = f"a.{pack}"
    if pack == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for inside in Path("a").rglob("*.png"):
                archive.write(inside)
    else:
        with tarfile.open(file, "w:gz") as archive:
            archive.add("a")
    assert own(file).key == plain.key
    Path(file).write_bytes(Path(file).read_bytes()[:300])
    assert f"dataset.path={file}" in refused(file)


def test_refusals_say_what_is_there():
    assert "no such folder" in refused("nowhere")
    pictures("flat", [""], splits=("",))
    assert "4 images (0.png, …), but not two class folders" in refused("flat")
    Path("text").mkdir()
    for i in range(3):
        Path(f"text/{i}.txt").write_text("x")
    assert "holds no dataset: 3 .txt files" in refused("text")
    pictures("both", "ab")
    table(Path("both/train.parquet"), [0, 1], ["a", "b"])
    assert "holds 2 datasets: .parquet files (1 files), class folders (16 files)" in refused("both")


def test_fit_keeps_the_proportions_or_does_not():
    """Fits a black image of 20×10 pixels with a white square of 10×10."""
    wide = np.zeros((10, 20, 3), np.uint8)
    wide[:, 5:15] = 255
    pictures("f", "ab", make=lambda: Image.fromarray(wide))
    shares = {
        fit: own("f", size=10, fit=fit, background="black").train_images.mean() / 255 for fit in ("squash", "crop", "pad")
    }
    assert shares["crop"] == 1 and abs(shares["squash"] - 0.5) < 0.06 and abs(shares["pad"] - 0.25) < 0.06
    padded = own("f", size=10, fit="pad", background="#ff0000").train_images[0]
    assert padded[:, 0, 0].tolist() == [255, 0, 0]


def test_a_full_or_read_only_cache_is_named(monkeypatch):
    pictures("x", "ab")
    monkeypatch.setenv("BNN_EXP_CACHE", "/proc/none")
    assert "BNN_EXP_CACHE" in refused("x") and "/proc/none" in refused("x")
    monkeypatch.setenv("BNN_EXP_CACHE", str(Path("cache").absolute()))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bnn_exp.data.cache.save_file", full)
    assert "No space left on device" in refused("x")
    assert not [file for file in Path("cache").rglob("*") if file.suffix in (".part", ".safetensors")]


def test_mnist_as_idx_files_is_mnist(mnist_folder, tmp_path):
    """Writes the four published IDX files from the rows of the parquet files, and reads them."""
    parquet = read("mnist", "ylecun/mnist", str(mnist_folder))
    for split, name in (("train", "train"), ("test", "t10k")):
        images, labels = getattr(parquet, f"{split}_images")[:, 0], getattr(parquet, f"{split}_labels").astype(np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images), 1))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels), 1))
    assert read("mnist", "ylecun/mnist", str(tmp_path)).key == parquet.key


def test_damaged_files_are_read_rightly_or_refused():
    script = ROOT / "scripts/fuzz_readers.py"
    done = subprocess.run([sys.executable, script, "--count", "340", "--seed", "7"], capture_output=True, text=True)
    assert done.returncode == 0 and "340 damaged files, 0 wrong" in done.stdout, done.stdout + done.stderr
