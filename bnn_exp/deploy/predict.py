"""Predicts the classes of images with a trained network. The images are given as files, folders and patterns."""

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
from bnn_exp.data.images import Pixels, read_grey, read_image
from bnn_exp.deploy import centring
from bnn_exp.deploy.centring import Centred
from bnn_exp.deploy.evaluate import described
from bnn_exp.deploy.load import load_packed
from bnn_exp.errors import UserError
from bnn_exp.records.files import write_json, write_text
from bnn_exp.records.model import load_model, read_model
from bnn_exp.records.summary import surroundings
from bnn_exp.records.terminal import progress

BATCH = 256  # images that are read and predicted together
TOP = 3  # the number of likeliest classes that a prediction lists
TOGETHER = "model.batch_norm.running_stats=false: each prediction depends on the other images"
FILES = ("predictions.csv", "predictions.json")


@dataclass
class Found:
    """The image files that the setting `input` names. `passed_over` is the number of other files in the named folders."""

    images: list[Path] = field(default_factory=list)
    passed_over: int = 0


@dataclass
class Predictions:
    """The predictions for image files. An answer lists the likeliest classes with their probabilities, 0 to 1, in order."""

    model: dict[str, Any]  # see `bnn_exp.deploy.evaluate.described`
    answers: list[tuple[Path, list[tuple[str, float]]]]
    skipped: list[tuple[Path, str]]  # unreadable files, each with the reason
    passed_over: int
    together: bool = False  # True if each answer depends on the other images
    centred: dict[Path, Centred] | None = None  # the facts of each centred picture; None without `predict.centre`
    inverted: int = 0  # the number of images with a light ground if that of the training images is dark, or the reverse

    def write(self, directory: Path) -> None:
        """Writes `predictions.csv` and `predictions.json` to `directory`."""
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
                    | ({} if self.centred is None else {"centred": vars(self.centred[file])})
                    for file, top in self.answers
                ],
                "skipped": [{"file": str(file), "reason": reason} for file, reason in self.skipped],
            },
        )

    def remark(self, file: Path) -> list[str]:
        """Returns what was done to a centred picture, as a list of one text. The list is empty without `predict.centre`."""
        return [] if self.centred is None else [str(self.centred[file])]

    def csv(self) -> str:
        """Returns a CSV table with a row for each file: class and probability of the likeliest class, then of the next."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        width = max((len(top) for _, top in self.answers), default=1)
        places = ["", *(f"_{i}" for i in range(2, width + 1))]
        more = [] if self.centred is None else ["centred"]
        table.writerow(["file", *(f"{what}{place}" for place in places for what in ("class", "probability")), *more])
        for file, top in self.answers:
            table.writerow([file, *(cell for answer in top for cell in answer), *self.remark(file)])
        return text.getvalue()


@dataclass
class Reader:
    """Reads image files as a network takes them, and notes which of them it skips.

    Args:
        shape: (channels, height, width) of the network's images.
        light_ink: see `centring.light_ink`.
        centre: True to centre the ink of each picture.
    """

    shape: tuple[int, int, int]
    pixels: Pixels
    light_ink: bool | None = None
    centre: bool = False
    skipped: list[tuple[Path, str]] = field(default_factory=list)  # unreadable files, each with the reason
    centred: dict[Path, Centred] = field(default_factory=dict)
    inverted: int = 0

    def read(self, files: Iterable[Path]) -> dict[Path, np.ndarray]:
        """Returns the pixels of each readable file, uint8 of `shape`."""
        found = {}
        for file in files:
            try:
                found[file] = self._centred(file) if self.centre else read_image(file, self.shape, self.pixels)
            except UserError as error:
                self.skipped.append((file, str(error).splitlines()[0]))
        if self.light_ink is not None and not self.centre:
            self.inverted += sum(centring.is_dark(image[0]) != self.light_ink for image in found.values())
        return found

    def _centred(self, file: Path) -> np.ndarray:
        try:
            image, facts = centring.centred(read_grey(file, self.pixels), self.shape[1:], bool(self.light_ink))
        except centring.NoInk as error:
            raise UserError(f"{file}: {error}") from error
        self.centred[file] = facts
        return image[None]


def predict(model: Path, given: Sequence[str], device: str = "cpu", centre: bool = False) -> Predictions:
    """Predicts the classes of every image that `given` names. An unreadable file is skipped.

    Args:
        model: a model file or a checkpoint.
        given: files, folders (with all folders below), or patterns such as `a/**/*.jpg`.
        device: the device of the network.
        centre: True to make each picture like the images of MNIST, see `bnn_exp.deploy.centring`.

    Raises:
        UserError: there is no such model, an item of `given` names no image, no image can be read, or the network takes no
            centred pictures.
    """
    network, about = _on_bits(model)
    network.to(device)
    if about["image_shape"][0] not in (1, 3):
        raise UserError(
            f"from={model}: the network takes {about['image_shape'][0]} channels, a file has 1 or 3\nallowed: task=evaluate"
        )
    mean = read_model(model)[1].get("mean")
    light_ink = centring.light_ink(about, None if mean is None else mean.numpy())
    if centre:
        centring.check(about, light_ink)
    found = find(given)
    reader = Reader(tuple(about["image_shape"]), Pixels.of_settings(about["config"]["dataset"]), light_ink, centre)
    answers: list[tuple[Path, list[tuple[str, float]]]] = []
    together = normalises_by_batch(network)
    with progress("images", len(found.images)) as done:
        for files in batches(found.images, len(found.images) if together else BATCH):
            images = reader.read(files)
            if together and len(images) == 1:
                raise UserError(
                    f"{TOGETHER}, and there is only one\nallowed: several images, or a network with running statistics"
                )
            if images:
                batch = torch.from_numpy(np.stack(list(images.values()))).to(device)
                answers += zip(images, _answers(network, batch, about["classes"]), strict=True)
            done(len(files))
    if not answers:
        first, others = reader.skipped[0][1], len(reader.skipped) - 1
        raise UserError(first + f"\n{others} other file{'s' * (others > 1)} of input= can't be read either" * bool(others))
    centred = reader.centred if centre else None
    facts = described(model, about)
    return Predictions(facts, answers, reader.skipped, found.passed_over, together, centred, reader.inverted)


def normalises_by_batch(network: nn.Module) -> bool:
    """Returns True if a prediction depends on the other images of its batch."""
    return any(isinstance(module, _BatchNorm) and not module.track_running_stats for module in network.modules())


def batches(items: list[Path], size: int) -> Iterable[list[Path]]:
    """Splits `items` into lists of `size`; the last may be shorter."""
    return (items[i : i + size] for i in range(0, len(items), size))


@torch.inference_mode()
def _answers(network: nn.Module, images: torch.Tensor, classes: list[str]) -> list[list[tuple[str, float]]]:
    best, which = network(images).softmax(1).topk(min(TOP, len(classes)))
    rows = zip(which.tolist(), best.tolist(), strict=True)
    return [[(classes[c], p) for c, p in zip(*row, strict=True)] for row in rows]


def _on_bits(model: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the packed network, or the float network if it can't be packed, and the facts about it that the file stores."""
    try:
        return load_packed(model)
    except UserError:  # the network can't be packed, or the file is unreadable, which load_model reports
        return load_model(model)


def find(given: Sequence[str]) -> Found:
    """Returns the images that `given` names, each once: in the order of `given`, sorted by name within a folder or a pattern.

    Raises:
        UserError: an item names no image.
    """
    found = Found()
    for item in given:
        before, path = len(found.images), Path(at_home(item))
        if path.is_file():
            found.images.append(path)
        else:
            matching = [str(path)] if path.is_dir() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            _add_images(matching, found)
        if len(found.images) == before:
            raise UserError(
                f"input={item}: no image there\n"
                "allowed: an image, a folder of images, a pattern ('a/**/*.png'), or a list of them"
            )
    found.images = list(dict.fromkeys(found.images))
    return found


def _add_images(paths: Sequence[str], found: Found) -> None:
    """Adds to `found` every image in `paths`, and every image inside the folders in `paths`."""
    for path in map(Path, paths):
        for file in [path] if path.is_file() else walk(path, f"input={path}"):
            if not file.name.startswith(".") and is_image(file):
                found.images.append(file)
            else:
                found.passed_over += 1
