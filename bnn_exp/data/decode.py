"""Decoding a dataset of labelled images by Hugging Face `datasets`: from the hub, or from a folder in the hub's layout."""

import os
import threading
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from bnn_exp.errors import UserError

PROBE_SECONDS = 2.5  # how long the hub may take to answer at all; `datasets` itself gives up only after 25 s


def decode(name: str, hub: str | None, path: str | None) -> dict:
    """train and test images (uint8 [rows, channels, height, width]) and labels (int64 [rows]), and the class names.

    Raises:
        UserError: no dataset there, no image or label column, images that can't be decoded or differ in size.
    """
    source = f"dataset.path={path}" if path else f"dataset={name} ({hub})"
    splits = _load(name, hub, path, source)
    arrays, shape = {}, None
    for role, names in {"train": ("train",), "test": ("test", "validation", "valid", "val")}.items():
        split = next((splits[n] for n in names if n in splits), None)
        if split is None or not len(split):
            raise UserError(f"{source}: no {role} rows\nallowed: a dataset with the splits train and test")
        image, label, classes = _columns(split, source)
        images, labels = _images(split, image, source, role, shape), np.asarray(split[label][:], dtype=np.int64)
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"{source}: {role} row {int(np.argmax((labels < 0) | (labels >= len(classes))))} has no label")
        shape = images.shape[1:]
        arrays |= {f"{role}_images": images, f"{role}_labels": labels}
    return {**arrays, "classes": classes}


def _load(name: str, hub: str | None, path: str | None, source: str):
    """The `datasets.DatasetDict`; where the hub doesn't answer, what an earlier download left, else an error at once."""
    offline = path is None and not _hub_answers()
    import datasets
    from huggingface_hub import constants

    datasets.disable_progress_bars()
    if offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(path or hub)
    except Exception as error:  # whatever a foreign folder or a missing network makes a deep stack of libraries raise
        if path:
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise UserError(
                f"{source}: not a dataset of images ({reason})\n"
                "allowed: a folder that holds a dataset as the hub serves it (parquet files, one or more a split)"
            ) from error
        raise UserError(
            f"{source}: the Hugging Face hub can't be reached and holds no downloaded copy on this machine\n"
            f"two ways out: dataset.path=FOLDER with the files of {hub}, or dataset=digits, which is in the package"
        ) from error


def _hub_answers() -> bool:
    """Whether the hub answers within PROBE_SECONDS, by whatever proxy the environment names; name look-up included."""
    answer = threading.Event()

    def probe() -> None:
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
            answer.set()
        except urllib.error.HTTPError:
            answer.set()
        except (OSError, ValueError):
            pass
        finally:
            done.set()

    done = threading.Event()
    threading.Thread(target=probe, daemon=True).start()
    done.wait(PROBE_SECONDS)
    return answer.is_set()


def _columns(split, source: str) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the label column and the names of the classes, found by the types of the features."""
    import datasets

    features = split.features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(images) != 1 or not labels:
        raise UserError(
            f"{source}: its columns are {', '.join(f'{n} ({type(f).__name__})' for n, f in features.items())}\n"
            "allowed: one column of images (Image) and one of classes (ClassLabel)"
        )
    return images[0], labels[0], tuple(features[labels[0]].names)


def _images(split, column: str, source: str, role: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """All images of a split, in one array; `shape` is what the splits before it had."""
    import datasets

    rows = split.cast_column(column, datasets.Image(decode=False)).with_format("arrow")[:][column].to_pylist()
    grey = shape[0] == 1 if shape else _is_grey(rows[0])
    images = None
    for i, row in enumerate(rows):
        try:
            image = np.asarray(_open(row).convert("L" if grey else "RGB"))
        except Exception as error:
            raise UserError(f"{source}: {role} image {i} can't be decoded ({error})") from error
        if images is None:
            shape = shape or ((1, *image.shape) if grey else (3, *image.shape[:2]))
            images = np.empty((len(rows), *shape), np.uint8)
        if image.shape[:2] != shape[1:]:
            (h, w), (_, height, width) = image.shape[:2], shape
            raise UserError(
                f"{source}: {role} image {i} is {w}×{h} pixels, those before it are {width}×{height}\n"
                "allowed: a dataset whose images all have one size"
            )
        images[i] = image if grey else image.transpose(2, 0, 1)
    return images


def _is_grey(row: dict) -> bool:
    try:
        return _open(row).getbands() in (("L",), ("1",), ("I",))
    except OSError:
        return True  # the loop that decodes says which image is broken


def _open(row: dict) -> Image.Image:
    return Image.open(BytesIO(row["bytes"]) if row["bytes"] is not None else Path(row["path"]))
