"""Decoding a dataset of labelled images by Hugging Face `datasets`: from the hub, or from a folder in the hub's layout."""

import os
import threading
import urllib.error
import urllib.request

import numpy as np

from bnn_exp.data.images import decode_images
from bnn_exp.errors import UserError

PROBE_SECONDS = 2.5  # how long the hub may take to answer at all; `datasets` itself gives up only after 25 s


def decode(name: str, hub: str | None, path: str | None, label: str | None = None, size: int | None = None) -> dict:
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
        image, column, classes = _columns(split, source, label)
        labels = np.asarray([-1 if value is None else value for value in split[column][:]], dtype=np.int64)
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(
                f"{source}: {role} row {int(np.argmax((labels < 0) | (labels >= len(classes))))} has no label\n"
                "allowed: a dataset of which every row has one; of loose images, a folder a class (train/CLASS/…, test/CLASS/…)"
            )
        images = decode_images(split, image, f"{source}: {role}", size, shape)
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
    hub, _, configuration = (hub or "").partition(":")
    try:
        if path and configuration and configuration not in datasets.get_dataset_config_names(path):
            configuration = ""  # bare files
        return datasets.load_dataset(path or hub, configuration or None)
    except Exception as error:  # whatever a foreign folder or a missing network makes a deep stack of libraries raise
        if path:
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise UserError(
                f"{source}: not a dataset of images ({reason})\n"
                "allowed: a folder that holds a dataset as the hub serves it (parquet files), or train/CLASS/… and test/CLASS/…"
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


def _columns(split, source: str, label: str | None) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the label column and the names of the classes, found by the types of the features."""
    import datasets

    features = split.features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = {name: len(feature.names) for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    if len(images) != 1 or not labels:
        raise UserError(
            f"{source}: its columns are {', '.join(f'{n} ({type(f).__name__})' for n, f in features.items())}\n"
            "allowed: one column of images (Image) and one of classes (ClassLabel), or a folder a class (train/CLASS/…)"
        )
    if label is not None and label not in labels:
        raise UserError(f"dataset.label={label} is not a column of classes\nallowed: {', '.join(labels)}")
    label = label or max(labels, key=labels.get)
    return images[0], label, tuple(features[label].names)
