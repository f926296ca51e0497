"""A packed form of any network: binary layers keep their weights packed, and unpack them for each use."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.bits import unpack
from bnn_exp.bits.reference import unpacked
from bnn_exp.errors import UserError
from bnn_exp.nn import BinaryLayer, binary_layers, encode
from bnn_exp.nn.norm import make_affine, running_norms


def with_packed_layers(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Loads `state` into `network` and packs its weights, in place. Returns `network` in evaluation mode.

    A plugin's network may return the result from its method `pack(state)`.

    Args:
        network: its tensors are replaced, except buffers that no state_dict has.
        state: the tensors that `bnn_exp.bits.deployed_state` returns.

    Raises:
        UserError: the network has float weights.
    """
    own = dict(state)
    for name, layer in binary_layers(network):
        refuse_floats(layer)
        prefix = f"{name}." if name else ""
        layer.weights, layer.weight = "bits", nn.Parameter(torch.empty_like(state[f"{prefix}weight"]), requires_grad=False)
        if layer.bias is not None:
            own[f"{prefix}bias"] = unpack(state[f"{prefix}bias"], tuple(layer.bias.shape))
    for _, norm in running_norms(network):
        make_affine(norm)
    network.load_state_dict(own, strict=False)
    return network.eval().requires_grad_(False)


def refuse_floats(layer: BinaryLayer) -> None:
    """Raises UserError if the layer has float weights."""
    if layer.weights == "float":
        raise UserError("model.weights=float: there are no bits to pack, so it can't be packed\nallowed: bits, latent")


def traceable(network: nn.Module) -> nn.Module:
    """Returns a copy of a network with packed layers that `torch.export` can trace: the copy uses torch operators only."""
    network = copy.deepcopy(network)
    for _, layer in binary_layers(network):
        kind = type(layer)
        layer.__class__ = type(kind.__name__, (_Traceable, kind), {"__module__": kind.__module__})
        weight = layer.weight.detach()
        del layer.weight
        layer.register_buffer("weight", weight)  # torch 2.9 cannot load a program whose parameters are integers
    return network


class _Traceable:
    """A base class whose `value` unpacks the packed `weight` of a BinaryLayer by torch operators only."""

    @property
    def value(self: Any) -> Tensor:
        return encode(unpacked(self.weight)[:, : math.prod(self.shape[1:])].reshape(self.shape), self.encoding)
