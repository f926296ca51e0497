import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_images, write_dataset
from PIL import Image

from bnn_exp.data import arrays, cache, decode, sources
from bnn_exp.data.dataset import Dataset, epoch_order, gathered, pieces, rows_from
from bnn_exp.data.folder import find
from bnn_exp.errors import UserError
from bnn_exp.nn import operators
from bnn_exp.training.steps.tally import Tally


def test_digits_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    digits = sources.read("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8) and digits.test_images.shape == (360, 1, 8, 8)
    images = np.concatenate([digits.train_images, digits.test_images])[:, 0]
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    levels = np.rint(images / 255 * 16)  # recovers the levels 0…16 from bytes

    def rows(x, y):
        return sorted((*image.astype(int).ravel().tolist(), int(label)) for image, label in zip(x, y, strict=True))

    assert rows(levels, labels) == rows(sklearn.images, sklearn.target)
    share = np.bincount(digits.test_labels) / np.bincount(labels)
    assert abs(share - 360 / 1797).max() < 0.01  # each class has its share of test rows


def test_a_folder_is_decoded_exactly_by_feature_types(tmp_path):
    images = random_images(80)
    arrays = sources.read("mnist", "none/none", str(write_dataset(tmp_path / "a", images[:60], images[60:])))
    assert np.array_equal(arrays.train_images, np.stack(images[:60])[:, None])
    assert np.array_equal(arrays.test_images, np.stack(images[60:])[:, None])
    assert arrays.train_labels.tolist() == [i % 2 for i in range(60)]
    assert arrays.classes == ("no", "yes")


def test_colour_images_come_as_channels_first(tmp_path):
    images = [np.random.default_rng(i).integers(0, 256, (4, 6, 3), dtype=np.uint8) for i in range(8)]
    arrays = sources.read("mnist", "none/none", str(write_dataset(tmp_path / "c", images[:4], images[4:])))
    assert np.array_equal(arrays.train_images, np.stack(images[:4]).transpose(0, 3, 1, 2))


def test_a_dataset_is_decoded_once_wherever_it_lies(tmp_path, monkeypatch):
    images = random_images(10)
    first = sources.read("mnist", "none/none", str(write_dataset(tmp_path / "a", images[:6], images[6:])))
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.setattr(decode, "decode", lambda *_: pytest.fail("decoded again"))
    again = sources.read("mnist", "none/none", str(tmp_path / "b"))
    assert np.array_equal(first.train_images, again.train_images) and first.key == again.key


def test_other_content_is_another_dataset(tmp_path):
    images = random_images(10)
    a = sources.read("mnist", "none/none", str(write_dataset(tmp_path / "a", images[:6], images[6:])))
    b = sources.read("mnist", "none/none", str(write_dataset(tmp_path / "a", images[1:6], images[6:])))
    assert a.key != b.key and len(b.train_labels) == 5


def test_a_damaged_cache_file_is_made_anew(tmp_path):
    images = random_images(10)
    folder = str(write_dataset(tmp_path / "a", images[:6], images[6:]))
    arrays = sources.read("mnist", "none/none", folder)
    file = max(cache.cache_folder().glob("mnist-*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    whole = file.read_bytes()
    for damaged in (whole[:-20], whole[:-20] + bytes(19) + b"\1"):  # a truncated file, then one with changed pixels
        file.write_bytes(damaged)
        assert np.array_equal(sources.read("mnist", "none/none", folder).test_images, arrays.test_images)
    assert np.array_equal(sources.read("mnist", "none/none", folder).test_images, arrays.test_images)


def test_runs_started_together_share_one_decoding(tmp_path, monkeypatch):
    images = random_images(10)
    folder = str(write_dataset(tmp_path / "a", images[:5], images[5:]))
    decoded, original, results = [], decode.decode, []
    monkeypatch.setattr(decode, "decode", lambda *a: decoded.append(1) or original(*a))
    threads = [threading.Thread(target=lambda: results.append(sources.read("mnist", "n/n", folder))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 and len(decoded) == 1
    assert all(np.array_equal(r.train_images, results[0].train_images) for r in results)


def test_what_is_no_dataset_is_named(tmp_path):
    images = random_images(10)
    (tmp_path / "empty").mkdir()
    mixed = write_dataset(tmp_path / "mixed", [*images[:5], np.zeros((7, 7), np.uint8)], images[5:])
    later = write_dataset(tmp_path / "later", images[:5], [np.zeros((7, 7), np.uint8)])
    bare = write_dataset(tmp_path / "bare", images[:5], images[5:], labels=False)
    unlabelled = write_images(tmp_path / "unlabelled", ["train/0.png", "train/1.png", "test/2.png"])
    one_class = write_images(tmp_path / "one_class", ["train/a/0.png", "test/a/1.png"])
    junk = tmp_path / "junk"
    junk.mkdir()
    (junk / "train.parquet").write_bytes(b"PAR1 but no more")
    for folder, said in {
        tmp_path / "nowhere": "no such folder",
        tmp_path / "empty": "holds no dataset",
        mixed: r"train image 5 is 7×7 pixels, those before it are 5×6",
        later: r"test image 0 is 7×7 pixels",
        unlabelled: r"3 images \(test/2.png, …\), but not two class folders",
        one_class: "2 images .*, but not two class folders",
        bare: r"its columns are picture \(Image\)",
        junk: r"train.parquet can't be read \(",
    }.items():
        with pytest.raises(UserError, match=said) as error:
            sources.read("mnist", "none/none", str(folder))
        assert len(str(error.value).splitlines()) <= 2 and len(str(error.value)) < 600 and str(folder) in str(error.value)


def test_a_corrupt_image_is_named(tmp_path):
    import datasets

    images = [{"bytes": b"\x89PNG broken", "path": None} if i == 3 else image for i, image in enumerate(random_images(6))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split in ("train", "test"):
        rows = {"image": images, "label": [0, 1] * 3}
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(UserError, match="train image 3 can't be decoded"):
        sources.read("mnist", "none/none", str(tmp_path))


def test_without_a_hub_the_two_ways_out_are_named():
    """Runs in a new process with a closed port as the hub, so nothing waits for retries."""
    code = "from bnn_exp.data import sources; sources.read('mnist', 'ylecun/mnist')"
    environment = {
        **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": "/nonexistent",
        "PATH": "",
        "BNN_EXP_CACHE": "/tmp/none",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert "dataset.path=FOLDER" in done.stderr and "dataset=digits" in done.stderr and "Retrying" not in done.stderr


def test_a_limit_keeps_the_same_random_rows():
    digits = sources.read("digits")
    data = Dataset.from_arrays(digits, torch.device("cpu"), limit=200)
    assert len(data.train) == 200 and len(data.test) == 360
    assert len(data.train.labels.unique()) == 10
    assert torch.equal(data.train.images, Dataset.from_arrays(digits, torch.device("cpu"), limit=200).train.images)
    assert len(Dataset.from_arrays(digits, torch.device("cpu"), limit=5000).train) == 1437


def test_a_batch_is_the_pixels_and_labels_of_its_rows():
    data = Dataset.from_arrays(sources.read("digits"), torch.device("cpu"))
    x, labels = data.train.batch(torch.tensor([5, 2]))
    assert x.dtype == torch.uint8 and x.shape == (2, 1, 8, 8)
    assert torch.equal(x, data.train.images[[5, 2]]) and torch.equal(labels, data.train.labels[[5, 2]])


def test_an_epoch_is_one_permutation():
    cpu = torch.device("cpu")
    rows = epoch_order(1000, seed=0, epoch=3, device=cpu)
    batches = pieces(rows, 64)
    assert [len(b) for b in batches] == [64] * 15 + [40] and torch.equal(torch.cat(batches), rows)
    assert torch.equal(rows.sort().values, torch.arange(1000)) and not torch.equal(rows, torch.arange(1000))
    assert torch.equal(rows, epoch_order(1000, 0, 3, cpu))
    assert not torch.equal(rows, epoch_order(1000, 0, 4, cpu))
    assert not torch.equal(rows, epoch_order(1000, 1, 3, cpu))


@pytest.mark.usefixtures("triton_runs")
@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 32, 32)])
def test_the_kernels_gather_the_batch_that_the_definitions_gather(shape, monkeypatch):
    order, images = torch.randperm(23), torch.randint(0, 256, (23, *shape), dtype=torch.uint8)
    labels = torch.arange(23) % 10
    rows = order[4:21]
    monkeypatch.setattr(operators, "kernels_everywhere", True)
    assert torch.equal(rows_from(order, torch.tensor(4), 17), rows)
    found, theirs = gathered(images, labels, rows)
    assert torch.equal(found, images[rows]) and torch.equal(theirs, labels[rows])


@pytest.mark.usefixtures("triton_runs")
@pytest.mark.parametrize("kernels", [True, False])
def test_a_batch_is_noted_where_the_announced_number_says(kernels, monkeypatch):
    monkeypatch.setattr(operators, "kernels_everywhere", kernels)
    tally = Tally(5, torch.device("cpu"))
    for batch, loss in ((0, 0.5), (3, float("nan")), (1, 0.25)):
        tally.add(torch.tensor(batch), torch.tensor(loss), torch.tensor(7), 60)
    assert tally.losses.nan_to_num(-1).tolist() == [30, 15, 0, -1, 0] and tally.correct == 21


def test_a_row_left_over_joins_the_last_batch():
    assert [len(b) for b in pieces(torch.arange(129), 64)] == [64, 65]


def write_images(folder: Path, names: list[str]) -> Path:
    """Writes the named files below `folder`, each a random colour image of 6×5 pixels."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(folder / name)
    return folder


CLASS_FOLDERS = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("cat", "dog") for i in range(3)]


def test_a_folder_of_class_folders_is_a_dataset(tmp_path):
    folder = write_images(tmp_path / "own", CLASS_FOLDERS)
    arrays = sources.read("local", path=str(folder))
    assert arrays.classes == ("cat", "dog") and arrays.train_labels.tolist() == arrays.test_labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    for split, images in (("train", arrays.train_images), ("test", arrays.test_images)):
        files = [name for name in CLASS_FOLDERS if name.startswith(split)]
        assert np.array_equal(images, [np.asarray(Image.open(folder / f)).transpose(2, 0, 1) for f in files])


def test_one_corrupt_file_among_many_is_named_and_nothing_trains(bnn_train, tmp_path):
    names = [f"{split}/{name}/{i:04}.png" for split, n in (("train", 400), ("test", 5)) for name in "ab" for i in range(n)]
    folder = write_images(tmp_path / "own", names)
    file = folder / "train/b/0123.png"
    file.write_bytes(file.read_bytes()[:50])
    done = bnn_train("dataset=local", f"dataset.path={folder}")
    assert done.code == 2 and f"train image 523 ({file}) can't be decoded" in done.err and len(done.err.splitlines()) <= 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["own"]


def test_images_of_any_size_are_resized_to_one(tmp_path):
    folder = write_images(tmp_path / "own", CLASS_FOLDERS)
    Image.new("RGB", (40, 20), (10, 200, 30)).save(folder / "train/cat/1.png")
    with pytest.raises(UserError, match=r"train image 1 \(.*1.png\) is 40×20 pixels[^\n]*\n.*dataset.size=N"):
        sources.read("local", path=str(folder))
    small, large = (sources.read("local", path=str(folder), size=size) for size in (4, 8))
    assert small.train_images.shape == (6, 3, 4, 4) and large.test_images.shape == (6, 3, 8, 8) and small.key != large.key
    assert (large.train_images[1] == np.array([10, 200, 30])[:, None, None]).all()


def test_threads_decode_large_images_to_the_same_pixels(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "own", CLASS_FOLDERS)
    serial, threaded = (
        _decoded(folder) for large in (1e9, 0) if not monkeypatch.setattr("bnn_exp.data.decode_images.LARGE", large)
    )
    assert all(np.array_equal(serial[key], threaded[key]) for key in serial)


def _decoded(folder):
    return decode.decode(find(folder), decode.Reading())


def test_of_several_columns_of_classes_the_finest_or_the_named_one_counts(tmp_path):
    import datasets

    names = {"coarse_label": ["a", "b"], "fine_label": ["p", "q", "r"]}
    features = {"img": datasets.Image()} | {key: datasets.ClassLabel(names=value) for key, value in names.items()}
    rows = {"img": random_images(6), "coarse_label": [0, 1] * 3, "fine_label": [0, 1, 2] * 2}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(tmp_path / f"{split}.parquet")
    fine = sources.read("cifar100", "none/none", str(tmp_path))
    coarse = sources.read("cifar100", "none/none", str(tmp_path), label="coarse_label")
    assert fine.classes == ("p", "q", "r") and fine.train_labels.tolist() == [0, 1, 2] * 2
    assert coarse.classes == ("a", "b") and coarse.train_labels.tolist() == [0, 1] * 3 and coarse.key != fine.key
    with pytest.raises(UserError, match=r"dataset.label=kind[^\n]*\nallowed: coarse_label, fine_label"):
        sources.read("cifar100", "none/none", str(tmp_path), label="kind")


def test_a_configuration_of_the_hub_is_for_the_hub(tmp_path):
    images = random_images(10)
    folder = write_dataset(tmp_path / "bare", images[:6], images[6:])
    assert len(sources.read("svhn", "owner/name:cropped_digits", str(folder)).train_labels) == 6


def test_statistics_are_those_of_the_pixels_in_float64(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 4, 5), dtype=np.uint8) // [[[[1]], [[2]], [[9]]]]
    mean, std = arrays.statistics(images.astype(np.uint8))
    x = images.astype(np.float64) / 255
    assert np.allclose(mean, x.mean((0, 2, 3)), rtol=1e-12) and np.allclose(std, x.std((0, 2, 3)), rtol=1e-12)
    folder = write_images(tmp_path / "own", CLASS_FOLDERS)
    first, again = (sources.read("local", path=str(folder)) for _ in range(2))  # the cache provides the second one
    assert first.mean == again.mean and first.std == again.std and len(first.mean) == 3


@pytest.mark.parametrize(("limit", "validation", "rows"), [(None, 0.1, 143), (None, 0.5, 718), (400, 0.25, 100)])
def test_validation_rows_are_train_rows_that_are_not_trained_on(limit, validation, rows):
    digits = sources.read("digits")
    data = Dataset.from_arrays(digits, torch.device("cpu"), limit, validation)
    assert len(data.validation) == rows and len(data.train) == (limit or 1437) - rows

    def kinds(split):
        return sorted(zip(map(bytes, split.images.numpy()), split.labels.tolist(), strict=True))

    everything = Dataset.from_arrays(digits, torch.device("cpu"), limit)
    assert sorted(kinds(data.train) + kinds(data.validation)) == kinds(everything.train)  # each row is in exactly one split
    assert kinds(data.test) == kinds(everything.test) and everything.validation is None
    share = data.validation.labels.bincount() - validation * everything.train.labels.bincount()
    assert share.abs().max() <= 1  # each class has its share of validation rows
    again = Dataset.from_arrays(digits, torch.device("cpu"), limit, validation)
    assert torch.equal(data.validation.images, again.validation.images)


@pytest.mark.slow
def test_the_real_cifar10(cifar10_folder):
    """The local copy is JPEG, so its statistics are only near the published ones."""
    arrays = sources.read("cifar10", "uoft-cs/cifar10", str(cifar10_folder))
    assert arrays.train_images.shape == (50000, 3, 32, 32) and arrays.test_images.shape == (10000, 3, 32, 32)
    assert np.bincount(arrays.train_labels).tolist() == [5000] * 10
    assert arrays.classes[:3] == ("airplane", "automobile", "bird")
    assert np.allclose(arrays.mean, (0.4914, 0.4822, 0.4465), atol=2e-3)
    assert np.allclose(arrays.std, (0.2470, 0.2435, 0.2616), atol=2e-3)


@pytest.mark.slow
def test_the_real_mnist(mnist_folder):
    arrays = sources.read("mnist", "ylecun/mnist", str(mnist_folder))
    assert arrays.train_images.shape == (60000, 1, 28, 28) and arrays.test_images.shape == (10000, 1, 28, 28)
    assert arrays.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # the published order
    assert np.bincount(arrays.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (round(arrays.mean[0], 4), round(arrays.std[0], 4)) == (0.1307, 0.3081)  # the usual constants of MNIST
