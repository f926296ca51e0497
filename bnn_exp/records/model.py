"""`model.safetensors`: a trained network in one file, its binary weights eight to a byte, its configuration in the metadata."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bnn_exp import models
from bnn_exp.bits import deployed_state, unpack
from bnn_exp.config import model as model_settings
from bnn_exp.errors import UserError
from bnn_exp.nn import binary_parameters
from bnn_exp.nn.norm import STATISTICS, make_affine, running_norms
from bnn_exp.records.files import replacing

FORMAT = "bnn_exp model 2"
ABOUT = ("config", "image_shape", "classes")


def save_model(file: Path, network: nn.Module, config: dict, image_shape: tuple[int, ...], classes: tuple[str, ...]) -> None:
    """Write the network atomically, with the resolved configuration of its run; images are (channels, height, width)."""
    state = deployed_state(network)
    about = {key: json.dumps(value) for key, value in zip(ABOUT, (config, image_shape, classes), strict=True)}
    with replacing(file) as temporary:
        temporary.write_bytes(save(state, {"format": FORMAT} | about | {"sha256": _sha256(about, state)}))


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run directory or of a `model.safetensors`, in evaluation mode on the CPU, and what the file says of it:
    `config`, `image_shape` (channels, height, width) and `classes`. Its input is pixels, uint8 or float32 in [0, 1].

    On a CPU it evaluates bit for bit as the network that was saved. Its BatchNorms have a scale and a shift, and no statistics.

    Raises:
        UserError: there is no such file, it is damaged, or something else wrote it.
    """
    network, state, about = read_model(path)
    shapes = {name: tuple(weight.shape) for name, weight in binary_parameters(network)}
    network = network.to_empty(device="cpu")
    for _, norm in running_norms(network):
        norm.reset_running_stats()
    network.load_state_dict({n: unpack(t, shapes[n]) if n in shapes else t for n, t in state.items()}, strict=False)
    return network.eval(), about


def read_model(path: str | Path) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """What `load_model` makes a network of: the network on the meta device, where it takes no memory; the tensors for it,
    binary weights packed (`bnn_exp.bits.deployed_state`); and what the file says of it.

    Raises:
        UserError: as `load_model`.
    """
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file\nallowed: a run directory, or the model.safetensors of one")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, and must be {FORMAT!r}")
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if metadata["sha256"] != _sha256(metadata, state):
            raise ValueError("its content is not what was written: the SHA-256 differs")
        about = {key: json.loads(metadata[key]) for key in ABOUT}
        network = _skeleton(about, len(state))
        _check(network, state)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, UserError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: not a readable model ({reason[:300]})") from error
    return network, state, about


def _skeleton(about: dict[str, Any], tensors: int) -> nn.Module:
    """The network that a file of so many tensors describes, on the meta device."""
    settings = model_settings(about["config"]["model"])
    shape, classes = about["image_shape"], about["classes"]
    if not (isinstance(shape, list) and [type(n) for n in shape] == [int] * 3 and min(shape) > 0):
        raise ValueError(f"image_shape={shape}: must be [channels, height, width]")
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        raise ValueError("classes must be a list of names")
    if models.depth(settings) > tensors:
        raise ValueError(f"{models.depth(settings)} layers, {tensors} tensors")
    if settings.weights == "latent":
        settings = replace(settings, weights="bits")  # the file holds the bits of latents, not the latents
    with torch.device("meta"):
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
