"""`model.safetensors`: a trained network in one file, its binary weights eight to a byte, its configuration in the metadata."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bnn_exp import models
from bnn_exp.bits import deployed_state, load_state, unpack
from bnn_exp.config import plugins
from bnn_exp.config.models import MODELS, weights_of
from bnn_exp.config.settings import model_settings
from bnn_exp.errors import UserError
from bnn_exp.nn import binary_parameters
from bnn_exp.nn.exact import home
from bnn_exp.nn.norm import STATISTICS, make_affine, running_norms
from bnn_exp.records import checkpoint, probe_logits, runs
from bnn_exp.records.files import replacing
from bnn_exp.records.restore_norms import trainable

FORMAT = "bnn_exp model 2"
ABOUT = ("config", "image_shape", "classes")
DAMAGED = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    UserError,
)  # what a bad file can raise
# Files that earlier versions wrote have none of these. Earlier versions read a file with them, since "sha256" leaves them out.
IDENTITY = ("class", "probe")


def save_model(
    file: Path,
    network: nn.Module,
    config: dict,
    image_shape: tuple[int, ...],
    classes: tuple[str, ...],
    answer: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Write the network atomically.

    The metadata hold the configuration, the classes, the class of the network ("module:name") and its logits for the probe
    (`bnn_exp.records.probe_logits`), so that a reader knows whether it has built the same network.

    Args:
        config: the resolved configuration of the run.
        image_shape: (channels, height, width).
        answer: computes what `network` computes, where something does so in less memory.
    """
    state, found = deployed_state(network), probe_logits.logits(network, image_shape, answer)
    rows = found if found is None else [[float(f"{number:.6g}") for number in row] for row in found.tolist()]
    values = (config, image_shape, classes, home(type(network)), rows)
    about = {key: json.dumps(value) for key, value in zip((*ABOUT, *IDENTITY), values, strict=True)}
    about["sha256"] = _sha256(about, state)
    about["identity_sha256"] = _identity_sha256(about)
    with replacing(file) as temporary:
        temporary.write_bytes(save(state, {"format": FORMAT} | about))


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run directory, of a `model.safetensors` or of a checkpoint, in evaluation mode on the CPU, and what the
    file says of it: `config`, `image_shape` (channels, height, width) and `classes`; `sha256`, a fingerprint of the network
    with these. Its input is pixels, uint8 or float32 in [0, 1].

    A network of one's own needs the plugin that registers it: the one that its configuration names is imported.

    On a CPU it evaluates bit for bit as the network that was saved. Its BatchNorms have a scale and a shift, and no statistics.
    Its first `train()` restores their statistics from the checkpoint of the run (`bnn_exp.records.restore_norms`).

    Raises:
        UserError: there is no such file, it is damaged, something else wrote it, its network is of another class than the one
            that its configuration builds here, or gives other logits than the network that was saved.
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
    """Take the probe out of `about`, and refuse a `network` that gives other logits than it says.

    Raises:
        UserError: it does.
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
    """Returns the parts of which `load_model` makes a network: the network on the meta device, where it takes no memory; its
    tensors, binary weights packed (`bnn_exp.bits.deployed_state`); and what the file says of it.

    Raises:
        UserError: as `load_model`.
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
        if metadata["sha256"] != _sha256(metadata, state):
            raise ValueError("its content is not what was written: the SHA-256 differs")
        about = {key: json.loads(metadata[key]) for key in ABOUT} | _identity(metadata)
        _know_model(file, about["config"])
        network = _skeleton(about, len(state))
        if known := about["class"] in (None, home(type(network))):
            _check(network, state)
            _check_shape(about)
    except _Unknown:
        raise
    except (SafetensorError, *DAMAGED) as error:
        raise _unreadable(file, error) from error
    if not known:
        raise _another_class(file, about, network)
    return network, state, about | {"sha256": metadata["sha256"]}


def _read_checkpoint(file: Path) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Does the same for a checkpoint. A checkpoint of an earlier version does not name its data: the run around it does.

    Raises:
        UserError: it is damaged, or nothing names its images and classes.
    """
    saved = checkpoint.load(file)
    try:
        about = {key: saved[key] for key in ABOUT} if "config" in saved else _about_run(runs.run_of(file))
        about |= {"class": saved.get("class"), "probe": None}
        _know_model(file, about["config"])
        skeleton = _skeleton(about, len(saved["network"]))
        if known := about["class"] in (None, home(type(skeleton))):
            network = models.build(model_settings(about["config"]["model"]), tuple(about["image_shape"]), len(about["classes"]))
            load_state(network, saved["network"])
            state = deployed_state(network)
            _check(skeleton, state)
    except _Unknown:
        raise
    except DAMAGED as error:
        raise _unreadable(file, error) from error
    if not known:
        raise _another_class(file, about, skeleton)
    return skeleton, state, about | {"sha256": _sha256({key: json.dumps(about[key]) for key in ABOUT}, state)}


class _Unknown(UserError):
    """The network of a file is of a model that no plugin registers here."""


def _know_model(file: Path, config: dict[str, Any]) -> None:
    """Load the plugins that a configuration names, if its model is one of theirs and not known yet.

    Raises:
        UserError: a plugin can't be loaded, or none has the model.
        ValueError: no plugin is named.
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
    """Reads what the model file of a run says of its network."""
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
    """The `model.safetensors` of a run directory, or the file itself."""
    return Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)


def _identity(metadata: dict[str, str]) -> dict[str, Any]:
    """The class of the network and its probe; None for each that the file does not have.

    Raises:
        ValueError, LookupError: they are not what was written.
    """
    if not {*IDENTITY, "identity_sha256"} & metadata.keys():
        return dict.fromkeys(IDENTITY)
    if metadata["identity_sha256"] != _identity_sha256(metadata):
        raise ValueError("its metadata are not what was written: the SHA-256 differs")
    found = {key: json.loads(metadata[key]) for key in IDENTITY}
    if not isinstance(found["class"], str):
        raise ValueError("class must be text")
    return found


def _check_shape(about: dict[str, Any]) -> None:
    """Raises ValueError unless the probe is a row of numbers, one a class, for each of its images."""
    if about["probe"] is not None:
        shape = tuple(torch.tensor(about["probe"], dtype=torch.float32).shape)
        if shape != (probe_logits.ROWS, len(about["classes"])):
            raise ValueError(f"its probe has the shape {list(shape)}: must be {[probe_logits.ROWS, len(about['classes'])]}")


def _skeleton(about: dict[str, Any], tensors: int) -> nn.Module:
    """The network that a file of so many tensors describes, on the meta device; one's own on the CPU."""
    settings = model_settings(about["config"]["model"])
    shape, classes = about["image_shape"], about["classes"]
    if not (isinstance(shape, list) and [type(n) for n in shape] == [int] * 3 and min(shape) > 0):
        raise ValueError(f"image_shape={shape}: must be [channels, height, width]")
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        raise ValueError("classes must be a list of names")
    if models.depth(settings) > tensors:
        raise ValueError(f"{models.depth(settings)} layers, {tensors} tensors")
    if weights_of(settings) == "latent":
        settings = replace(settings, weights="bits")  # the file holds the bits of latents, not the latents
    # A network of one's own may hold tensors that no state_dict has
    with torch.device("meta" if MODELS[settings.name].ours else "cpu"), torch.random.fork_rng(devices=[]):
        network = models.build(settings, tuple(shape), len(classes))
        for _, norm in running_norms(network):
            make_affine(norm)
    return network.eval()


def _check(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Raises ValueError unless the tensors are those of the network, by name, shape and dtype."""
    binary = {name for name, _ in binary_parameters(network)}
    expected = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(STATISTICS)}
    for name in sorted(expected.keys() ^ state.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'not part of the network'}")
    for name, tensor in expected.items():
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if name in binary:
            rows = shape[0] if len(shape) > 1 else 1
            shape, dtype = (rows, -(-tensor.numel() // rows // 8)), torch.uint8
        if tuple(state[name].shape) != shape or state[name].dtype != dtype:
            raise ValueError(f"{name} is {state[name].dtype} {list(state[name].shape)}: must be {dtype} {list(shape)}")


def _sha256(about: dict[str, str], state: dict[str, Tensor]) -> str:
    """A fingerprint of all that a file holds: what it says of the network as it is written, and every tensor."""
    digest = hashlib.sha256()
    for key in ABOUT:
        digest.update(f"{key} {about[key]}\n".encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _identity_sha256(about: dict[str, str]) -> str:
    """A fingerprint of what says which network a file holds, bound to the rest by its own fingerprint."""
    return hashlib.sha256("\n".join(about[key] for key in (*IDENTITY, "sha256")).encode()).hexdigest()
