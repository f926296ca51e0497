"""The packed form of any network of our layers: a layer keeps its weights as bits, and unpacks them when it uses them."""

import copy
import math

import torch
from torch import Tensor, nn

from bnn_exp.bits import unpack
from bnn_exp.bits.reference import unpacked
from bnn_exp.errors import UserError
from bnn_exp.nn import BinaryLayer, binary_layers, encode
from bnn_exp.nn.norm import make_affine, running_norms


def with_packed_layers(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """`network` with the tensors of `state` and with packed weights: changed in place, in evaluation.

    It is what the method `pack(state)` of a network of one's own may return.

    Args:
        network: its own tensors count for nothing, but for those that no state_dict has.
        state: as `bnn_exp.bits.deployed_state` has it.

    Raises:
        UserError: the network has float weights.
    """
    own = dict(state)
    for name, layer in binary_layers(network):
        if layer.weights == "float":
            raise UserError("model.weights=float: there are no bits, so that it can't be packed\nallowed: bits, latent")
        prefix = f"{name}." if name else ""
        layer.weights, layer.weight = "bits", nn.Parameter(torch.empty_like(state[f"{prefix}weight"]), requires_grad=False)
        if layer.bias is not None:
            own[f"{prefix}bias"] = unpack(state[f"{prefix}bias"], tuple(layer.bias.shape))
    for _, norm in running_norms(network):
        make_affine(norm)
    network.load_state_dict(own, strict=False)
    return network.eval().requires_grad_(False)


def traceable(network: nn.Module) -> nn.Module:
    """A copy of a network with packed layers that `torch.export` can follow: it unpacks by torch's operators alone."""
    network = copy.deepcopy(network)
    for _, layer in binary_layers(network):
        kind = type(layer)
        layer.__class__ = type(kind.__name__, (_Traceable, kind), {"__module__": kind.__module__})
        weight = layer.weight.detach()
        del layer.weight
        layer.register_buffer("weight", weight)  # torch 2.9 reads no program back whose parameters are integers
    return network


class _Traceable:
    """Goes before a BinaryLayer whose `weight` is packed, and takes the place of its `value`."""

    @property
    def value(self: BinaryLayer) -> Tensor:
        return encode(unpacked(self.weight)[:, : math.prod(self.shape[1:])].reshape(self.shape), self.encoding)
