"""A network in torch's own floats and int8, beside which its packed form is measured.

A CNN is measured as its float twin (`float_twin`): torch's modules, channels-last, with the values of the bits as weights and
with real activations. Any other network is measured as it is, with real weights.
"""

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.commands.benchmark.float_twin import has_twin, twin
from bnn_exp.nn import binary_layers
from bnn_exp.nn.graphs import Graphs
from bnn_exp.records import probe_logits

CALIBRATION = 64  # images of random pixels from which the quantization takes the ranges of activations
ENGINE = "x86"  # torch's kernels for int8: of fbgemm and oneDNN, the faster one for a layer

Logits = Callable[[Tensor], Tensor]  # of pixels, uint8


class FloatWays:
    """The ways to compute a network in torch, each a function of pixels, uint8 [batch, channels, height, width].

    Args:
        network: a network of bits in evaluation mode. If it is no CNN of this package, its weights become real in place.
    """

    def __init__(self, network: nn.Module):
        self.is_twin = has_twin(type(network))
        modules = list(_with_values(network)) if self.is_twin else [nn.Identity(), _plain(network)]
        self.first, self.layers = modules[0], nn.Sequential(*modules[1:]).eval()

    def fp32(self, pixels: Tensor) -> Tensor:
        return self.layers(self.first(pixels / 255))

    def bf16(self) -> Logits:
        """Returns the network with weights and activations in bfloat16."""
        layers = copy.deepcopy(self.layers).bfloat16()
        return lambda pixels: layers(self.first(pixels / 255).bfloat16())

    def int8(self, shape: tuple[int, ...]) -> Logits:
        """Returns the network after torch's static quantization: uint8 activations, int8 weights for each channel.

        Args:
            shape: the shape of an image.

        Raises:
            ImportError: this version of torch has no such quantization.
        """
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        inputs = self.first(probe_logits.pixels(shape, CALIBRATION) / 255)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch advises to move to another package
            torch.backends.quantized.engine = ENGINE
            prepared = prepare_fx(copy.deepcopy(self.layers), get_default_qconfig_mapping(ENGINE), (inputs,))
            prepared(inputs)
            layers = convert_fx(prepared)
        return lambda pixels: layers(self.first(pixels / 255))

    def on_cpu(self, shape: tuple[int, ...]) -> dict[str, Logits]:
        """Returns the ways on a CPU by name: fp32, and for a CNN also bf16, and int8 where torch has the kernels."""
        ways: dict[str, Logits] = {"torch fp32": self.fp32}
        if self.is_twin:
            ways["torch bf16"] = self.bf16()
            with suppress(ImportError):
                if ENGINE in torch.backends.quantized.supported_engines:  # not on ARM
                    ways["torch int8"] = self.int8(shape)
        return ways

    def recorded(self) -> dict[str, Logits]:
        """Returns the network in fp32 and in bf16 as functions that replay CUDA graphs."""
        return {"torch fp32": Graphs(self.fp32, required=True), "torch bf16": Graphs(self.bf16(), required=True)}

    def bytes(self) -> int:
        """Returns the number of bytes of all parameters in fp32."""
        return sum(4 * parameter.numel() for parameter in self.layers.parameters())


@torch.no_grad()
def _plain(network: nn.Module) -> nn.Module:
    """Changes a network in place into a usual network of torch, which stores real weights and takes inputs in [0, 1]."""
    layer: Any
    for _, layer in binary_layers(network):
        layer.weight.copy_(layer.value)
        if layer.bias is not None:
            layer.bias.copy_(layer.bias_value)
        layer.weights, layer.binary_input = "float", False
    return network


@torch.no_grad()
def _with_values(network: nn.Module) -> nn.Sequential:
    """Returns the float twin of a CNN, whose weights are the values of the bits."""
    found = twin(network)
    layers = [module for module in found if isinstance(module, nn.Conv2d | nn.Linear)]
    layer: Any
    for (_, layer), plain in zip(binary_layers(network), layers, strict=True):
        plain.weight.copy_(layer.value)
        if plain.bias is not None:
            plain.bias.copy_(layer.bias_value)
    return found
