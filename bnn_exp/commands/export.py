"""`task=export`: writes a packed network in another format and checks it on every test row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from bnn_exp.bits import bits_sha256
from bnn_exp.commands.images_to_check import images_to_check
from bnn_exp.commands.task import Task, joined, named
from bnn_exp.deploy.check import has_a_form
from bnn_exp.deploy.exports.preprocessing import FILE, Preprocessing
from bnn_exp.deploy.exports.to_c import export_c
from bnn_exp.deploy.exports.to_onnx import export_onnx
from bnn_exp.deploy.exports.to_qonnx import export_qonnx
from bnn_exp.deploy.exports.to_torch import export_torch, write_torch
from bnn_exp.deploy.layers import traceable
from bnn_exp.deploy.load import load_deployed, why_no_integers
from bnn_exp.errors import UserError
from bnn_exp.nn.known_classes import home
from bnn_exp.records.files import file_sha256, writable, write_text
from bnn_exp.records.formatting import bytes_in_words
from bnn_exp.records.model import load_model
from bnn_exp.records.runs import run_of


class Format(NamedTuple):
    """A file format. A network of a plugin supports the format by a method of the format's name."""

    write: Callable[..., dict[str, Any]]
    arguments: str | None  # the arguments of this method, as a message names them; None: there is no such method


# The format `torch` is not here: it holds every packed network, without a method of the class.
FORMATS = {
    "onnx": Format(export_onnx, "graph, pixels"),
    "c": Format(export_c, "shape, classes"),
    "qonnx": Format(export_qonnx, None),
}


def export(task: Task) -> str:
    """Exports the network. The export must predict the same classes as the network for all test rows.

    Returns the message of the task's end.

    Raises:
        UserError: the network or its test rows can't be read, or the format does not support the network.
    """
    wanted, model = task.request.export, task.model
    network, about = load_deployed(model)
    check_format(wanted.format, network, model)
    into = Path(wanted.dir) if wanted.dir else task.into_run_or(run_of(model) / named("export", model), model)
    images, tested = images_to_check(task, about)
    preprocessing = _preprocessing(model, about).with_vectors(network, images)
    with writable(into, "export.dir=FOLDER where you may write"):
        facts = _write(wanted.format, network, into, images, preprocessing)
        write_text(into / FILE, preprocessing.json(arrays=True))
    sizes = [
        f"{key.removesuffix('bytes').replace('_', ' ')}{bytes_in_words(value)}"
        for key, value in facts.items()
        if key.endswith("bytes")
    ]
    files = [*(file.name for file in facts.get("files", [facts.get("file")])), FILE]
    message = f"in {into}: {', '.join(files)}; {', '.join(sizes)}; the same predictions for all {tested}"
    return joined(message, task.next("benchmark", "its speed"))


def _write(format: str, network: nn.Module, into: Path, images: Tensor, facts: Preprocessing) -> dict[str, Any]:
    """Writes the export and checks its predictions for `images`, uint8 [images, …]. Returns its files and sizes."""
    if format != "torch":
        return FORMATS[format].write(network, into, images, facts.classes, facts)
    if has_a_form(network):
        return export_torch(network, into, images, facts)
    return write_torch(network, traceable(network), into, images, facts)


def _preprocessing(model: Path, about: dict[str, Any]) -> Preprocessing:
    """Returns how images become the pixels of the network in the file `model`, with the hashes of the network."""
    hashes = {"file_sha256": file_sha256(model), "bits_sha256": bits_sha256(load_model(model)[0])}
    return Preprocessing.of(about, **hashes)


def line_to_export(task: Task) -> str:
    """Returns a line with the command that exports the network of `task`, in a format that supports the network."""
    network, _ = load_deployed(task.model)
    return task.next("export", "for a device", [] if _supports("onnx", network) else ["export.format=torch"])


def check_format(format: str, network: nn.Module, model: Path) -> None:
    """Raises UserError if `format` can't hold `network`, which `load_deployed` made of the file `model`."""
    if _supports(format, network):
        return
    if reason := why_no_integers(model):
        raise UserError(f"export.format={format}: {reason}")
    arguments = FORMATS[format].arguments
    if arguments is None:
        raise UserError(
            f"export.format={format}: {home(type(network))} has no form in integers\n"
            "allowed: export.format=torch, or a network of model=mlp, bncvl or vgg"
        )
    raise UserError(
        f"export.format={format}: {home(type(network))} has no method {format}()\n"
        f"allowed: export.format=torch, or a method {format}({arguments}) of the class (docs/add_a_model.md)"
    )


def _supports(format: str, network: nn.Module) -> bool:
    """Returns True if `format` can hold a packed network. A class of the user may lack the method for a format."""
    if format == "torch" or has_a_form(network):
        return True
    return FORMATS[format].arguments is not None and hasattr(type(network), format)
