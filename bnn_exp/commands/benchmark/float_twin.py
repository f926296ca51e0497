"""The float twin of a CNN of bits: the same layers with real weights, of torch's own modules, trained by Adam.

Layers, BatchNorm, pooling and sizes are those of the CNN of bits. The twin of a binary activation is hardtanh: by
default both pass the gradient in the same window. The twin lies in memory channels-last, the faster format on a CPU.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.commands.benchmark.torch_loops import Loop, float_network
from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.vgg import VGG


def has_twin(network: type) -> bool:
    """Returns True if networks of this class have a float twin."""
    return network in _LAYERS


def twin_loop(settings: Settings, data: Dataset, bf16: bool, compiled: bool) -> Loop:
    """Returns a training loop of the float twin of the network of the settings.

    Args:
        data: the result of `torch_loops.in_floats`.
        bf16: train under autocast to bfloat16.
        compiled: compile the forward and the backward pass with torch.compile.
    """
    network = twin(float_network(settings, data))
    if compiled:
        network.compile()
    return Loop(settings, network, data, [torch.optim.Adam(network.parameters())], bf16)


def twin(network: Any) -> nn.Sequential:
    """Returns the float twin of a CNN, with new weights and the modules of the CNN's normalisations."""
    standardized = Applied(lambda x: ((x - network.mean) / network.std).contiguous(memory_format=torch.channels_last))
    layers = nn.Sequential(standardized, *_LAYERS[type(network)](network))
    layers.to(network.mean.device)
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Applied(nn.Module):
    """A module that applies a function of tensors."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.forward = function


def _of_bncvl(network: BNCVLNet) -> Iterator[nn.Module]:
    layer: Any
    for i, layer in enumerate(network.convolutions):
        if i and i % network.per_width == 0:
            yield nn.MaxPool2d(network.pool)
        yield from (_convolution(layer), layer.norm, layer.activation)
    yield Applied(lambda x: x.mean((2, 3)))
    for layer in network.dense:
        outputs, inputs = layer.shape
        yield from (nn.Linear(inputs, outputs, bias=layer.bias is not None), layer.norm, layer.activation)


def _of_vgg(network: VGG) -> Iterator[nn.Module]:
    layer: Any
    for i, (layer, norm) in enumerate(zip(network.convolutions, network.norms, strict=True), 1):
        yield _convolution(layer)
        if i % network.per_width == 0:
            yield nn.MaxPool2d(2)
        yield from (norm, nn.Hardtanh())
    yield from (nn.Flatten(), nn.Linear(network.last.in_features, network.last.out_features, bias=False), network.last_norm)


def _convolution(layer: Any) -> nn.Conv2d:
    sizes = layer.in_channels, layer.out_channels, layer.kernel_size
    return nn.Conv2d(*sizes, padding=layer.kernel_size // 2, bias=layer.bias is not None)


_LAYERS: dict[type, Callable[[Any], Iterator[nn.Module]]] = {BNCVLNet: _of_bncvl, VGG: _of_vgg}
