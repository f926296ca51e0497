"""From a run or a network to its packed form."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.bits import deployed_state
from bnn_exp.deploy.bncvl import pack_bncvl
from bnn_exp.deploy.mlp import PackedMLP
from bnn_exp.errors import UserError
from bnn_exp.nn import binary_layers
from bnn_exp.nn.exact import difference, home, is_exactly
from bnn_exp.records import probe
from bnn_exp.records.model import check_probe, read_model

ALLOWED = "allowed: exactly the networks that model=mlp and model=bncvl build"
# The errors of a network that was altered: a layer too many, none, a tied one, or one of another kind or size
ALTERED = (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
_FORMS = {"MLP": PackedMLP, "BNCVLNet": pack_bncvl}  # by the name of the class, exactly


def load_packed(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run directory or a `model.safetensors` on bits, in evaluation mode, on the CPU, and what the file says
    of it (see `bnn_exp.load_model`). Its weights are never anything but bits. Its input is pixels, uint8.

    Raises:
        UserError: there is no such file, it is damaged, the network can't be packed, or its packed form gives other logits than
            the network that was saved.
    """
    network, state, about = read_model(path)
    packed = _packed(network, state)
    check_probe(path, packed, about)
    return packed, about


def pack_network(network: nn.Module) -> nn.Module:
    """Returns the packed form of a network in memory, as `load_packed` does of a file. The network stays as it is.

    Raises:
        UserError: it can't be packed, or its packed form gives other logits.
    """
    _check(network)
    try:
        packed, shape = _packed(copy.deepcopy(network).to("meta"), deployed_state(network)), _image_shape(network)
        found = probe.difference(probe.logits(packed, shape), probe.logits(network, shape))
    except ALTERED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{home(type(network))} can't be packed: {type(error).__name__}: {reason[:300]}\n{ALLOWED}") from error
    if found:
        raise UserError(f"{home(type(network))}: its packed form gives {found}, so that it is not packed")
    return packed


def _packed(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    _check(network)
    return _FORMS[type(network).__name__](network, state)


def _check(network: nn.Module) -> None:
    """Refuse a network that has no packed form."""
    name = home(type(network))
    if not is_exactly(type(network), *_FORMS):
        raise UserError(f"{name} can't be packed\n{ALLOWED}")
    if found := difference(network, *_FORMS):
        raise UserError(f"{name} can't be packed: {found}\n{ALLOWED}")
    others = {tensor.dtype for tensor in network.state_dict().values() if tensor.is_floating_point()} - {torch.float32}
    if others:
        raise UserError(f"{name} can't be packed: it computes in {', '.join(map(str, others))}\nallowed: float32")
    if any(layer.weights == "float" for _, layer in binary_layers(network)):
        raise UserError("model.weights=float: there are no bits, so that it can't be packed\nallowed: bits, latent")


def _image_shape(network: nn.Module) -> tuple[int, ...]:
    """The shape of an image that `network`, one of `_FORMS`, takes: a convolutional one takes all that survive its pooling."""
    if type(network).__name__ == "MLP":
        return (network.layers[0].in_features,)
    first, poolings = network.convolutions[0], (len(network.convolutions) - 1) // network.depth
    side = max(8, network.pool**poolings)
    return (first.in_channels, side, side)
