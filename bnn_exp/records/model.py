"""`model.safetensors`: a trained network in one file, with eight binary weights per byte and the configuration in the
metadata."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bnn_exp import models
from bnn_exp.bits import deployed_state, load_state, unpack
from bnn_exp.config import plugins, zoo
from bnn_exp.config.models import MODELS
from bnn_exp.config.settings import model_settings
from bnn_exp.errors import UserError
from bnn_exp.nn import binary_parameters
from bnn_exp.nn.known_classes import home
from bnn_exp.nn.norm import running_norms
from bnn_exp.records import checkpoint, probe_logits, runs
from bnn_exp.records.files import replacing
from bnn_exp.records.model_format import (
    ABOUT,
    FORMAT,
    IDENTITY,
    check_probe_shape,
    check_tensors,
    identity,
    identity_sha256,
    sha256,
    skeleton,
)
from bnn_exp.records.restore_norms import trainable

DAMAGED = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    UserError,
)  # exceptions that a damaged file can raise


def save_model(
    file: Path,
    network: nn.Module,
    config: dict,
    image_shape: tuple[int, ...],
    classes: tuple[str, ...],
    answer: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Writes the network to `file` atomically.

    The metadata hold the configuration, the classes, the class of the network ("module:name"), and the probe:
    its logits for random images (`bnn_exp.records.probe_logits`). By the probe a reader checks that it built the same network.

    Args:
        config: the resolved configuration of the run.
        image_shape: (channels, height, width).
        answer: a function that computes the same logits as `network`, with less memory; None to use `network`.
    """
    state, found = deployed_state(network), probe_logits.logits(network, image_shape, answer)
    rows = found if found is None else [[float(f"{number:.6g}") for number in row] for row in found.tolist()]
    values = (config, image_shape, classes, home(type(network)), rows)
    about = {key: json.dumps(value) for key, value in zip((*ABOUT, *IDENTITY), values, strict=True)}
    about["sha256"] = sha256(about, state)
    about["identity_sha256"] = identity_sha256(about)
    with replacing(file) as temporary:
        temporary.write_bytes(save(state, {"format": FORMAT} | about))


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network in a run directory, a `model.safetensors` or a checkpoint, and the description of the network.

    The network is in evaluation mode on the CPU. Its input is pixels, uint8 or float32 in [0, 1]. The description
    is a dictionary: `config`, `image_shape` (channels, height, width), `classes`, and `sha256`, the fingerprint of all of
    these and the tensors.

    If a plugin registers the network, the plugin that the configuration names is imported. On a CPU the network evaluates bit
    for bit as the saved one. Its BatchNorms hold a scale and a shift, but no statistics. The first `train()` restores the
    statistics from the checkpoint of the run (`bnn_exp.records.restore_norms`).

    Raises:
        UserError: the file is missing, damaged or no model file; or the network that its configuration builds here is of
            another class, or gives other logits.
    """
    network, state, about = read_model(path)
    shapes = {name: tuple(weight.shape) for name, weight in binary_parameters(network)}
    if any(parameter.is_meta for parameter in network.parameters()):
        network = network.to_empty(device="cpu")
    for _, norm in running_norms(network):
        norm.reset_running_stats()
    network.load_state_dict({n: unpack(t, shapes[n]) if n in shapes else t for n, t in state.items()}, strict=False)
    check_probe(path, network.eval(), about)
    return trainable(network, model_file(path), about), about


def check_probe(path: str | Path, network: nn.Module, about: dict[str, Any]) -> None:
    """Compares the logits of `network` for the probe images with the saved logits, which it removes from `about`.

    Args:
        path: the path of the network's file, for the message.
        about: the description of the network in the file.

    Raises:
        UserError: the logits differ.
    """
    expected = about.pop("probe")
    if expected is None:
        return
    found = probe_logits.logits(network, tuple(about["image_shape"]))
    if wrong := probe_logits.difference(found, torch.tensor(expected)):
        raise UserError(
            f"{path}: the network gives {wrong}, compared with the one that was saved\n"
            "allowed: the program that wrote the file, with the same layers"
        )


def read_model(path: str | Path) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Returns the parts from which `load_model` makes a network.

    Returns:
        (network, tensors, description). The network of this package lies on the meta device, where it takes no memory. Binary
        weights among the tensors are packed (`bnn_exp.bits.deployed_state`). `load_model` explains the description.

    Raises:
        UserError: see `load_model`.
    """
    file = model_file(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file\nallowed: a run directory, its model.safetensors, or a file of its checkpoints/")
    if file.suffix == ".pt":
        return _read_checkpoint(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, and must be {FORMAT!r}")
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if metadata["sha256"] != sha256(metadata, state):
            raise ValueError("its content is not what was written: the SHA-256 differs")
        about = {key: json.loads(metadata[key]) for key in ABOUT} | identity(metadata)
        _know_model(file, about["config"])
        network = skeleton(about, len(state))
        if known := about["class"] in (None, home(type(network))):
            check_tensors(network, state)
            check_probe_shape(about)
    except _Unknown:
        raise
    except (SafetensorError, *DAMAGED) as error:
        raise _unreadable(file, error) from error
    if not known:
        raise _another_class(file, about, network)
    return network, state, about | {"sha256": metadata["sha256"]}


def _read_checkpoint(file: Path) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Returns the parts of a network from a checkpoint, as `read_model` does. A checkpoint of an earlier version does not name
    its images and classes. The model file of its run then names them.

    Raises:
        UserError: the checkpoint is damaged, or nothing names its images and classes.
    """
    saved = checkpoint.load(file)
    try:
        about = {key: saved[key] for key in ABOUT} if "config" in saved else _about_run(runs.run_of(file))
        about |= {"class": saved.get("class"), "probe": None}
        _know_model(file, about["config"])
        built = skeleton(about, len(saved["network"]))
        if known := about["class"] in (None, home(type(built))):
            network = models.build(model_settings(about["config"]["model"]), tuple(about["image_shape"]), len(about["classes"]))
            load_state(network, saved["network"])
            state = deployed_state(network)
            check_tensors(built, state)
    except _Unknown:
        raise
    except DAMAGED as error:
        raise _unreadable(file, error) from error
    if not known:
        raise _another_class(file, about, built)
    return built, state, about | {"sha256": sha256({key: json.dumps(about[key]) for key in ABOUT}, state)}


class _Unknown(UserError):
    """The exception for a file whose model no plugin registers here."""


def _know_model(file: Path, config: dict[str, Any]) -> None:
    """Loads the plugins that the configuration in `file` names, unless the model of the configuration is already registered.

    Raises:
        UserError: a plugin can't be loaded, or no plugin registers the model.
        ValueError: the configuration names no plugin.
    """
    name, named = config["model"]["name"], config.get("plugins")
    if name in MODELS:
        return
    if not isinstance(name, str) or not named or not all(isinstance(entry, str) for entry in named):
        raise ValueError(f"model={name} is not known here, and no plugin is named that has it")
    try:
        plugins.load(named, f"from={runs.run_of(file)}")
    except UserError as error:
        raise _Unknown(str(error)) from error
    if name not in MODELS:
        raise _Unknown(f"{file}: model={name} is not known here\nallowed: {', '.join(MODELS)}, or a plugin that registers it")


def _about_run(run: Path) -> dict[str, Any]:
    """Returns the configuration, image shape and classes in the model file of the run in the directory `run`."""
    if (run / "model.safetensors").is_file():
        about = read_model(run)[2]
        return {key: about[key] for key in ABOUT}
    raise UserError(f"no model.safetensors in {run} says which images and classes it knows")


def _unreadable(file: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{file}: not a readable model ({reason[:300]})")


def _another_class(file: Path, about: dict[str, Any], network: nn.Module) -> UserError:
    name = about["config"]["model"]["name"]
    return UserError(
        f"{file}: its network is of the class {about['class'][:200]}, model={name} here is {home(type(network))}\n"
        f"allowed: a program in which model={name} is that class"
    )


def model_file(path: str | Path) -> Path:
    """Returns the `model.safetensors` in `path` if that is a run directory or `zoo/NAME`, else `path` itself.

    Raises:
        UserError: the zoo has no such network.
    """
    place = zoo.located(path)
    return place / "model.safetensors" if place.is_dir() else place
