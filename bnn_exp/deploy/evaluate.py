"""What a trained network is worth: its test accuracy as floats and on bits, sample by sample, and its worst mistakes."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnn_exp.data.images import Pixels, read_image
from bnn_exp.data.sources import Arrays
from bnn_exp.deploy.load import load_packed
from bnn_exp.errors import UserError
from bnn_exp.records import plots
from bnn_exp.records.files import replacing
from bnn_exp.records.model import load_model

BATCH = 4096
WORST = 64  # mistakes in the picture
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass
class Evaluation:
    """The test rows by both networks. `packed` says why, where there is no packed network."""

    accuracy_float: float  # percent
    accuracy_packed: float | None
    different_predictions: int | None
    seconds_float: float
    seconds_packed: float | None
    rows: int
    packed: str
    classes: list[str]
    confusion: list[list[int]]  # [label][answer] of the float network


def evaluate(path: Path, arrays: Arrays) -> Evaluation:
    """Evaluate the model of a run directory or a file on the test rows of `arrays`; leaves `evaluation.json` and, where it is
    ever wrong, `mistakes.png` beside it.

    Raises:
        UserError: no such model, or images or classes of another kind.
    """
    network, about = load_model(path)
    trained_on, given = (tuple(about["image_shape"]), tuple(about["classes"])), (arrays.test_images.shape[1:], arrays.classes)
    if trained_on != given:
        kinds = [f"{'×'.join(map(str, shape))} images of {len(classes)} classes" for shape, classes in (trained_on, given)]
        raise UserError(f"from={path}: it knows {kinds[0]}, the dataset has {kinds[1]}\nallowed: the dataset of the run")
    images, labels = torch.from_numpy(arrays.test_images), torch.from_numpy(arrays.test_labels)
    logits, seconds = timed(network, images)
    answers = logits.argmax(1)
    try:
        packed_logits, packed_seconds = timed(load_packed(path)[0], images)
        packed, packed_answers = "the same weights as bits", packed_logits.argmax(1)
    except UserError as error:
        packed, packed_answers, packed_seconds = str(error).splitlines()[0], None, None
    n = len(arrays.classes)
    result = Evaluation(
        accuracy_float=percent(answers == labels),
        accuracy_packed=None if packed_answers is None else percent(packed_answers == labels),
        different_predictions=None if packed_answers is None else int((packed_answers != answers).sum()),
        seconds_float=seconds,
        seconds_packed=packed_seconds,
        rows=len(labels),
        packed=packed,
        classes=list(arrays.classes),
        confusion=torch.bincount(labels * n + answers, minlength=n * n).reshape(n, n).tolist(),
    )
    folder = path if path.is_dir() else path.parent
    with replacing(folder / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(vars(result), indent=2) + "\n")
    _picture(folder / "mistakes.png", arrays, logits)
    return result


@torch.inference_mode()
def timed(network: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """Logits of all images, and the seconds that they took."""
    network(images[:2])  # what is made once is not counted
    began = time.perf_counter()
    logits = torch.cat([network(batch) for batch in images.split(BATCH)])
    return logits, time.perf_counter() - began


def percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def _picture(file: Path, arrays: Arrays, logits: Tensor) -> None:
    """The mistakes that the network is surest of, each over "label → answer, probability"."""
    probabilities, answers = logits.softmax(1).max(1)
    wrong = (answers.numpy() != arrays.test_labels).nonzero()[0]
    worst = wrong[np.argsort(-probabilities.numpy()[wrong], kind="stable")][:WORST]
    if len(worst):
        names = [
            f"{arrays.classes[arrays.test_labels[i]]} → {arrays.classes[answers[i]]} {100 * probabilities[i]:.0f}%"
            for i in worst
        ]
        plots.samples(file, arrays.test_images[worst], names)


def predict(path: Path, given: Path) -> list[tuple[Path, list[tuple[str, float]]]]:
    """The three likeliest classes, with probabilities from 0 to 1, of an image or of each image of a folder, by its name.

    Raises:
        UserError: no such model or image, or one that can't be read.
    """
    network, about = _on_bits(path)
    files = sorted(f for f in given.iterdir() if f.suffix.lower() in IMAGES) if given.is_dir() else [given]
    if not files or not files[0].is_file():
        raise UserError(f"input={given}: no image there\nallowed: an image file, or a folder of them ({', '.join(IMAGES)})")
    pixels = Pixels.of_settings(about["config"]["dataset"])
    images = np.stack([read_image(file, tuple(about["image_shape"]), pixels) for file in files])
    logits, _ = timed(network, torch.from_numpy(images))
    best, classes = logits.softmax(1).topk(min(3, len(about["classes"])))
    answers = zip(classes.tolist(), best.tolist(), strict=True)
    return [
        (file, [(about["classes"][c], p) for c, p in zip(*answer, strict=True)])
        for file, answer in zip(files, answers, strict=True)
    ]


def _on_bits(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The packed network, or the float one where it can't be packed."""
    try:
        return load_packed(path)
    except UserError:  # a file that can't be read is refused again
        return load_model(path)
