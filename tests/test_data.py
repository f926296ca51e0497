import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import random_images, write_dataset

from bnn_exp.data import decode, sources
from bnn_exp.data.dataset import Dataset, epoch_batches
from bnn_exp.errors import UserError


def test_digits_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    digits = sources.read("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8) and digits.test_images.shape == (360, 1, 8, 8)
    images = np.concatenate([digits.train_images, digits.test_images])[:, 0]
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    levels = np.rint(images / 255 * 16)  # 0…16 survive the scaling to a byte

    def rows(x, y):
        return sorted((*image.astype(int).ravel().tolist(), int(label)) for image, label in zip(x, y, strict=True))

    assert rows(levels, labels) == rows(sklearn.images, sklearn.target)
    share = np.bincount(digits.test_labels) / np.bincount(labels)
    assert abs(share - 360 / 1797).max() < 0.01  # stratified


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
    (file,) = sources.cache_folder().glob(f"mnist-{arrays.key[:16]}.safetensors")
    file.write_bytes(file.read_bytes()[:-20])
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
    alone = write_dataset(tmp_path / "alone", images[:5], images[5:])
    next(alone.glob("test*")).unlink()
    junk = tmp_path / "junk"
    junk.mkdir()
    (junk / "train.parquet").write_bytes(b"PAR1 but no more")
    for folder, said in {
        tmp_path / "nowhere": "no such folder",
        tmp_path / "empty": "holds no dataset",
        mixed: r"train image 5 is 7×7 pixels, those before it are 5×6",
        later: r"test image 0 is 7×7 pixels",
        bare: r"its columns are picture \(Image\)",
        alone: "no test rows",
        junk: "not a dataset of images",
    }.items():
        with pytest.raises(UserError, match=said) as error:
            sources.read("mnist", "none/none", str(folder))
        assert len(str(error.value).splitlines()) <= 2 and str(folder) in str(error.value)


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
    """In a process of its own, whose hub is a closed port: nothing waits for retries."""
    code = "from bnn_exp.data import sources; sources.read('mnist', 'ylecun/mnist')"
    environment = {
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
    batches = epoch_batches(1000, 64, seed=0, epoch=3, device=torch.device("cpu"))
    assert [len(b) for b in batches] == [64] * 15 + [40]
    rows = torch.cat(batches)
    assert torch.equal(rows.sort().values, torch.arange(1000)) and not torch.equal(rows, torch.arange(1000))
    assert torch.equal(rows, torch.cat(epoch_batches(1000, 64, 0, 3, torch.device("cpu"))))
    assert not torch.equal(rows, torch.cat(epoch_batches(1000, 64, 0, 4, torch.device("cpu"))))
    assert not torch.equal(rows, torch.cat(epoch_batches(1000, 64, 1, 3, torch.device("cpu"))))


def test_a_row_left_over_joins_the_last_batch():
    assert [len(b) for b in epoch_batches(129, 64, 0, 0, torch.device("cpu"))] == [64, 65]


def test_the_real_mnist(mnist_folder):
    arrays = sources.read("mnist", "ylecun/mnist", str(mnist_folder))
    assert arrays.train_images.shape == (60000, 1, 28, 28) and arrays.test_images.shape == (10000, 1, 28, 28)
    assert arrays.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as published
    assert np.bincount(arrays.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert round(float(arrays.train_images.mean()) / 255, 4) == 0.1307  # the mean that everyone normalises by
