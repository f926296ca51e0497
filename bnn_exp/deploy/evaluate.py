"""Evaluates a trained network: its test accuracy with floats and on bits, and its worst mistakes."""

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.bits import bits_sha256
from bnn_exp.config.settings import Rows
from bnn_exp.data.dataset import pieces
from bnn_exp.data.messages import some
from bnn_exp.data.old_keys import are_same
from bnn_exp.data.sources import Arrays
from bnn_exp.deploy.load import load_packed
from bnn_exp.errors import UserError
from bnn_exp.records import evaluations, plots
from bnn_exp.records.model import load_model
from bnn_exp.records.runs import which_of
from bnn_exp.records.summary import surroundings
from bnn_exp.records.terminal import progress

BATCH = 4096
WORST = 64  # the most mistakes that the figure shows
LISTED = 1000  # the most mistakes that evaluation.json lists


@dataclass
class Evaluation:
    """The results of the float and of the packed network on the same rows. Without a packed network, its results are None."""

    model: dict[str, Any]  # the result of `described`, with the key `bits_sha256` added
    # `name`, `path`, `key`, `rows`; `split`: "test", or "all" without test rows; `own`: true if the run trained on this dataset
    data: dict[str, Any]
    accuracy_float: float  # percent
    accuracy_packed: float | None
    summary_accuracy: float | None  # the accuracy that summary.json states for this network on these rows, else None
    different_predictions: int | None  # the number of rows for which the float and the packed network answer differently
    seconds_float: float
    seconds_packed: float | None
    rows: int
    packed: str  # a note on the packed network, or the reason why there is none
    classes: list[str]
    confusion: list[list[int]]  # numbers of rows, [label][answer], for the float network
    # One dict each: `row`, `name`, `class`, `answer`, `probability`; the most probable answers first, LISTED at most.
    mistakes: list[dict[str, Any]]
    date: str
    versions: dict[str, str]


def evaluate(file: Path, arrays: Arrays, dataset: Rows, device: str = "cpu") -> tuple[Evaluation, Arrays]:
    """Evaluates the network of a model file or a checkpoint on the test rows of `arrays`.

    Args:
        dataset: the settings by which `arrays` was loaded.
        device: the device of the packed network. The float network stays on the CPU.

    Returns:
        The evaluation, and the evaluated rows: the test rows, or all rows of data without test rows.

    Raises:
        UserError: there is no such model, or the network does not take these images or classes.
    """
    network, about = load_model(file)
    run = evaluations.own_run(file)
    trained_on = run.summary.get("dataset") if run else None
    own = trained_on and are_same(trained_on, arrays.key, dataset)
    split = "test" if own or arrays.own_test else "all"
    arrays = _relabelled(file, about, arrays if split == "test" else arrays.all_as_test())
    images, labels = torch.from_numpy(arrays.test_images), torch.from_numpy(arrays.test_labels)
    # Without running statistics a prediction depends on its batch, so use the batch size of the run's own evaluations
    size = about["config"].get("trainer", {}).get("eval_batch_size", BATCH)
    logits, seconds = timed(network, images, size, "as floats")
    answers = logits.argmax(1)
    try:
        packed_logits, packed_seconds = timed(load_packed(file)[0].to(device), images, size, "on bits", device)
        packed, packed_answers = "the same weights as bits", packed_logits.argmax(1)
    except UserError as error:
        packed, packed_answers, packed_seconds = str(error).splitlines()[0], None, None
    n = len(arrays.classes)
    model = described(file, about) | {"bits_sha256": bits_sha256(network)}
    result = Evaluation(
        model=model,
        data=_described(dataset, arrays, split, own),
        accuracy_float=percent(answers == labels),
        accuracy_packed=None if packed_answers is None else percent(packed_answers == labels),
        summary_accuracy=evaluations.summary_accuracy(run, model["which"], len(labels)) if own else None,
        different_predictions=None if packed_answers is None else int((packed_answers != answers).sum()),
        seconds_float=seconds,
        seconds_packed=packed_seconds,
        rows=len(labels),
        packed=packed,
        classes=list(arrays.classes),
        confusion=torch.bincount(labels * n + answers, minlength=n * n).reshape(n, n).tolist(),
        mistakes=_mistakes(arrays, logits),
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        versions=surroundings()["versions"],
    )
    return result, arrays


def _relabelled(file: Path, about: dict[str, Any], arrays: Arrays) -> Arrays:
    """Returns `arrays` with the labels that the network uses for the classes.

    Raises:
        UserError: the network takes images of another shape, or does not know one of the classes.
    """
    known, given = tuple(about["image_shape"]), arrays.test_images.shape[1:]
    if known != given:
        kinds = ["×".join(map(str, shape)) for shape in (known, given)]
        raise UserError(
            f"from={file}: the network takes images of {kinds[0]}, the dataset has {kinds[1]}\n"
            "allowed: images of that shape; dataset.size=N and dataset.channels=1 or 3 change the shape"
        )
    try:
        return arrays.in_classes(tuple(about["classes"]))
    except KeyError as error:
        raise UserError(
            f"from={file}: the network does not know the class {error.args[0]}\nallowed: {some(about['classes'], 6)}"
        ) from error


def described(file: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Returns facts that identify the network of a file.

    The facts are `file`; `which`: last, best, or the name of another file; `sha256`, the fingerprint of the network and its
    classes; and `file_sha256`, the fingerprint of the whole file.
    """
    known = {"file": str(file.resolve()), "which": which_of(file), "sha256": about["sha256"]}
    return known | {"file_sha256": evaluations.file_sha256(file)}


def _described(dataset: Any, arrays: Arrays, split: str, own: bool | None) -> dict[str, Any]:
    path = getattr(dataset, "path", None)
    where = {"name": dataset.name, "path": path and str(Path(path).resolve())}
    return {**where, "key": arrays.key, "split": split, "rows": len(arrays.test_labels), "own": own}


@torch.inference_mode()
def timed(network: nn.Module, images: Tensor, size: int = BATCH, what: str = "", device: str = "cpu") -> tuple[Tensor, float]:
    """Returns the logits of all images, float32 [n, classes] on the CPU, and the seconds of their computation.

    Args:
        size: the batch size.
        what: a text for the progress bar.
        device: the device of the network. The seconds include the copies of images and logits.
    """
    # The time must not include the preparation of kernels and, on a GPU, of a CUDA graph: the second call of a size records it.
    first = images[: 2 if device == "cpu" else size]
    for _ in range(2):
        network(first.to(device))
    logits, began = [], time.perf_counter()
    with progress(f"images {what}", len(images)) as done:
        for rows in pieces(torch.arange(len(images)), size):
            logits.append(network(images[rows[0] : rows[-1] + 1].to(device)))
            done(len(rows))
    return torch.cat(logits).cpu(), time.perf_counter() - began


def percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def _mistakes(arrays: Arrays, logits: Tensor) -> list[dict[str, Any]]:
    """Returns the wrong answers, at most LISTED, in the order of falling probability."""
    probabilities, answers = (found.numpy() for found in logits.softmax(1).max(1))
    wrong = (answers != arrays.test_labels).nonzero()[0]
    names = arrays.test_names
    return [
        {
            "row": row,
            "name": names[row] if names else f"row {row}",
            "class": arrays.classes[arrays.test_labels[row]],
            "answer": arrays.classes[answers[row]],
            "probability": float(probabilities[row]),
        }
        for row in wrong[(-probabilities[wrong]).argsort(kind="stable")][:LISTED].tolist()
    ]


def draw_mistakes(file: Path, evaluation: Evaluation, arrays: Arrays) -> None:
    """Draws the images of the worst mistakes, each titled "label → answer, probability". Without mistakes, deletes `file`."""
    worst = evaluation.mistakes[:WORST]
    if not worst:
        file.unlink(missing_ok=True)
        return
    names = [f"{m['class']} → {m['answer']} {100 * m['probability']:.0f}%" for m in worst]
    plots.samples(file, arrays.test_images[[m["row"] for m in worst]], names)
