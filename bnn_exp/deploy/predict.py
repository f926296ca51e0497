"""Answers of a trained network for pictures: files, folders with all below them, patterns."""

import csv
import glob
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnn_exp.config.paths import at_home
from bnn_exp.data.folder import walk
from bnn_exp.data.image_suffixes import is_image
from bnn_exp.data.images import Pixels, read_image
from bnn_exp.deploy.evaluate import described
from bnn_exp.deploy.load import load_packed
from bnn_exp.errors import UserError
from bnn_exp.records.files import write_json, write_text
from bnn_exp.records.model import load_model
from bnn_exp.records.summary import surroundings
from bnn_exp.records.terminal import progress

BATCH = 256  # pictures that are read before they are answered
TOP = 3  # classes of an answer
TOGETHER = "model.batch_norm.running_stats=false: each answer depends on the images beside it"
FILES = ("predictions.csv", "predictions.json")


@dataclass
class Found:
    """The pictures that an `input` names, and how many other files of its folders were passed over."""

    pictures: list[Path] = field(default_factory=list)
    passed_over: int = 0


@dataclass
class Predictions:
    """An answer for each file that is a picture: its likeliest classes with their probabilities, 0 to 1, the first first."""

    model: dict[str, Any]  # see `bnn_exp.deploy.evaluate.described`
    answers: list[tuple[Path, list[tuple[str, float]]]]
    skipped: list[tuple[Path, str]]  # files that can't be read, and why
    passed_over: int
    together: bool = False  # each answer depends on the other images

    def write(self, directory: Path) -> None:
        """Leaves `predictions.csv` and `predictions.json` in `directory`."""
        write_text(directory / FILES[0], self.csv())
        write_json(
            directory / FILES[1],
            {
                "model": self.model,
                "versions": surroundings()["versions"],
                "predictions": [
                    {
                        "file": str(file),
                        "class": top[0][0],
                        "probability": top[0][1],
                        "top": [{"class": name, "probability": p} for name, p in top],
                    }
                    for file, top in self.answers
                ],
                "skipped": [{"file": str(file), "reason": reason} for file, reason in self.skipped],
            },
        )

    def csv(self) -> str:
        """A row a file: file, class, probability, and the classes that come next."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        width = max((len(top) for _, top in self.answers), default=1)
        places = ["", *(f"_{i}" for i in range(2, width + 1))]
        table.writerow(["file", *(f"{what}{place}" for place in places for what in ("class", "probability"))])
        table.writerows([file, *(cell for answer in top for cell in answer)] for file, top in self.answers)
        return text.getvalue()


def predict(model: Path, given: Sequence[str]) -> Predictions:
    """Answers for every picture that `given` names: files, folders with all below them, or patterns such as `a/**/*.jpg`.
    A file that can't be read is left out.

    Args:
        model: a model file or a checkpoint.

    Raises:
        UserError: no such model, an item of `given` without a picture, or no picture that can be read.
    """
    network, about = _on_bits(model)
    if about["image_shape"][0] not in (1, 3):
        raise UserError(
            f"from={model}: it knows images of {about['image_shape'][0]} channels, a picture has 1 or 3\nallowed: task=evaluate"
        )
    found = find(given)
    shape, answers, skipped = tuple(about["image_shape"]), [], []
    pixels = Pixels.of_settings(about["config"]["dataset"])
    together = normalises_by_batch(network)
    with progress("pictures", len(found.pictures)) as done:
        for files in batches(found.pictures, len(found.pictures) if together else BATCH):
            images = {file: image for file in files if (image := _read(file, shape, pixels, skipped)) is not None}
            if together and len(images) == 1:
                raise UserError(
                    f"{TOGETHER}, and here is one alone\nallowed: several images, or a network with running statistics"
                )
            if images:
                answers += zip(images, _answers(network, np.stack(list(images.values())), about["classes"]), strict=True)
            done(len(files))
    if not answers:
        first, others = skipped[0][1], len(skipped) - 1
        raise UserError(first + f"\nnor {others} other file{'s' * (others > 1)} of input=" * bool(others))
    return Predictions(described(model, about), answers, skipped, found.passed_over, together)


def normalises_by_batch(network: nn.Module) -> bool:
    """Tells whether an answer depends on the other images of its batch."""
    return any(isinstance(module, _BatchNorm) and not module.track_running_stats for module in network.modules())


def batches(items: list[Path], size: int) -> Iterable[list[Path]]:
    """`items` in lists of `size`, and the rest."""
    return (items[i : i + size] for i in range(0, len(items), size))


def _read(file: Path, shape: tuple[int, int, int], pixels: Pixels, skipped: list[tuple[Path, str]]) -> np.ndarray | None:
    """The pixels of a file, uint8 of `shape`; or None, and `skipped` says why."""
    try:
        return read_image(file, shape, pixels)
    except UserError as error:
        skipped.append((file, str(error).splitlines()[0]))
        return None


@torch.inference_mode()
def _answers(network: nn.Module, images: np.ndarray, classes: list[str]) -> list[list[tuple[str, float]]]:
    best, which = network(torch.from_numpy(images)).softmax(1).topk(min(TOP, len(classes)))
    rows = zip(which.tolist(), best.tolist(), strict=True)
    return [[(classes[c], p) for c, p in zip(*row, strict=True)] for row in rows]


def _on_bits(model: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The packed network, or the float one where it can't be packed."""
    try:
        return load_packed(model)
    except UserError:  # a file that can't be read is refused again
        return load_model(model)


def find(given: Sequence[str]) -> Found:
    """The pictures that `given` names, each once, in its order and by name within a folder or a pattern.

    Raises:
        UserError: an item that names no picture.
    """
    found = Found()
    for item in given:
        before, path = len(found.pictures), Path(at_home(item))
        if path.is_file():
            found.pictures.append(path)
        else:
            matching = [str(path)] if path.is_dir() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            _look(matching, found)
        if len(found.pictures) == before:
            raise UserError(
                f"input={item}: no image there\n"
                "allowed: an image, a folder of images, a pattern ('a/**/*.png'), or a list of them"
            )
    found.pictures = list(dict.fromkeys(found.pictures))
    return found


def _look(paths: Sequence[str], found: Found) -> None:
    """Adds the pictures among `paths` and in the folders among them to `found`."""
    for path in map(Path, paths):
        for file in [path] if path.is_file() else walk(path, f"input={path}"):
            if not file.name.startswith(".") and is_image(file):
                found.pictures.append(file)
            else:
                found.passed_over += 1
