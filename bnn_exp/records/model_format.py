"""The metadata and the tensors that a `model.safetensors` must hold, and the fingerprints of both."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp import models
from bnn_exp.config.models import MODELS, weights_of
from bnn_exp.config.settings import model_settings
from bnn_exp.nn import binary_parameters
from bnn_exp.nn.norm import STATISTICS, make_affine, running_norms
from bnn_exp.records import probe_logits

FORMAT = "bnn_exp model 2"
ABOUT = ("config", "image_shape", "classes")
# Files of earlier versions lack these keys. Earlier versions can read files with these keys, as their "sha256" leaves them out.
IDENTITY = ("class", "probe")


def identity(metadata: dict[str, str]) -> dict[str, Any]:
    """Returns the class of the network and its probe logits from the metadata of a file; None for each if the file has neither.

    Raises:
        ValueError, LookupError: the metadata are not as they were written.
    """
    if not {*IDENTITY, "identity_sha256"} & metadata.keys():
        return dict.fromkeys(IDENTITY)
    if metadata["identity_sha256"] != identity_sha256(metadata):
        raise ValueError("its metadata are not what was written: the SHA-256 differs")
    found = {key: json.loads(metadata[key]) for key in IDENTITY}
    if not isinstance(found["class"], str):
        raise ValueError("class must be text")
    return found


def check_probe_shape(about: dict[str, Any]) -> None:
    """Checks that the probe logits in `about`, the description of a network, have one row per probe image and one number per
    class.

    Raises:
        ValueError: the probe logits have another shape.
    """
    if about["probe"] is not None:
        shape = tuple(torch.tensor(about["probe"], dtype=torch.float32).shape)
        if shape != (probe_logits.ROWS, len(about["classes"])):
            raise ValueError(f"its probe has the shape {list(shape)}: must be {[probe_logits.ROWS, len(about['classes'])]}")


def skeleton(about: dict[str, Any], tensors: int) -> nn.Module:
    """Returns the network that a file describes, without its weights: on the meta device, or on the CPU for a plugin's model.

    Args:
        about: the description of the network in the file.
        tensors: the number of tensors in the file.

    Raises:
        ValueError: the description is impossible.
    """
    settings = model_settings(about["config"]["model"])
    shape, classes = about["image_shape"], about["classes"]
    if not (isinstance(shape, list) and [type(n) for n in shape] == [int] * 3 and min(shape) > 0):
        raise ValueError(f"image_shape={shape}: must be [channels, height, width]")
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        raise ValueError("classes must be a list of names")
    if models.depth(settings) > tensors:
        raise ValueError(f"{models.depth(settings)} layers, {tensors} tensors")
    if weights_of(settings) == "latent":
        settings = replace(settings, weights="bits")  # the file holds the bits of the latent weights, not the weights
    # A plugin's network may hold tensors that its state_dict lacks. On the meta device these would have no values.
    with torch.device("meta" if MODELS[settings.name].ours else "cpu"), torch.random.fork_rng(devices=[]):
        network = models.build(settings, tuple(shape), len(classes))
        for _, norm in running_norms(network):
            make_affine(norm)
    return network.eval()


def check_tensors(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Checks that the tensors in `state` have the names, shapes and dtypes that a model file of `network` has.

    Raises:
        ValueError: a tensor is missing, superfluous or different.
    """
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


def sha256(about: dict[str, str], state: dict[str, Tensor]) -> str:
    """Returns the fingerprint of a model file: the SHA-256 of its description (`about`, JSON texts) and of every tensor."""
    digest = hashlib.sha256()
    for key in ABOUT:
        digest.update(f"{key} {about[key]}\n".encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def identity_sha256(about: dict[str, str]) -> str:
    """Returns the fingerprint of the network's class and probe logits, which also covers the
    fingerprint of the other content. `about` are the metadata of the file."""
    return hashlib.sha256("\n".join(about[key] for key in (*IDENTITY, "sha256")).encode()).hexdigest()
