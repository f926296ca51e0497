"""The parameters of a network by kind: bits, latent weights and real parameters."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bnn_exp.nn.binary import NotBinary, check_bits
from bnn_exp.nn.layers import BinaryLayer


def binary_layers(network: nn.Module) -> Iterator[tuple[str, BinaryLayer]]:
    """Yields (name, layer) for every BinaryLayer of a network, layers of float weights included."""
    for name, module in network.named_modules():
        if isinstance(module, BinaryLayer):
            yield name, module


def named_bits(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, bits) for every parameter that holds bits or latent weights."""
    for name, layer in binary_layers(network):
        for own, bits in layer.bits().items():
            yield f"{name}.{own}" if name else own, bits


def binary_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields (name, parameter) for every parameter that holds bits, in the order of the modules."""
    for name, parameter, layer in _parameters(network):
        if layer is not None and layer.weights == "bits":
            yield name, parameter


def latent_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields (name, parameter) for the latent and float weights of the binary layers."""
    for name, parameter, layer in _parameters(network):
        if layer is not None and layer.weights != "bits":
            yield name, parameter


def real_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields (name, parameter) for the parameters outside of binary layers, such as those of BatchNorm."""
    for name, parameter, layer in _parameters(network):
        if layer is None:
            yield name, parameter


def _parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter, BinaryLayer | None]]:
    """Yields (name, parameter, layer). The layer is the BinaryLayer that owns the parameter; None for other parameters."""
    owners = {id(p): layer for _, layer in binary_layers(network) for p in (layer.weight, layer.bias) if p is not None}
    for name, parameter in network.named_parameters():
        yield name, parameter, owners.get(id(parameter))


@torch.no_grad()
def verify_binary(network: nn.Module) -> dict[str, int]:
    """Checks that every binary weight is 0 or 1, and returns the number of ones of each tensor by name.

    Raises:
        NotBinary: a binary weight is neither 0 nor 1. The message says the tensor, the number and its position.
    """
    ones = {}
    for name, bits in named_bits(network):
        try:
            check_bits(name, bits)
        except NotBinary as error:
            raise NotBinary(
                f"{error}\nan average of bits (EMA, SWA) is not binary: bnn_exp.AveragedModel copies bits"
            ) from None
        ones[name] = int(bits.sum(dtype=torch.float64))
    return ones
