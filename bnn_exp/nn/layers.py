"""Layers with binary weights. A layer keeps its weights in one of three ways:

- `bits`: the parameter holds only 0. and 1. at every moment of training. A rule of `bnn_exp.optim` trains it.
- `latent`: the parameter is real, and its bits are 1[p > mean(p)]. Any optimizer trains it, straight through the threshold.
- `float`: the parameter is real and is used as it is. Such a network is not binary; it serves for comparison.

The gradient of a parameter is the gradient with respect to the value, unscaled: the `g` of the papers' rules.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bnn_exp.nn.binary import ENCODINGS, encode, quantize, quantized_values
from bnn_exp.nn.convolution import convolution, takes_pairs
from bnn_exp.nn.function import takes_kernels
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.packing import pack, unpack
from bnn_exp.nn.product import binary_product, linear, pixel_product
from bnn_exp.nn.saved import note_sums
from bnn_exp.nn.values import values

_FIRST: dict[str, Callable] = {  # kind of weights: a function of a shape that makes the weights of a new layer
    "bits": lambda shape: torch.full(shape, 0.5).bernoulli_(),
    "latent": torch.randn,
    "float": lambda shape: nn.init.kaiming_normal_(torch.empty(shape)) if len(shape) > 1 else torch.zeros(shape),
}


class BinaryLayer(nn.Module):
    """A layer whose `weight`, float32 of `shape`, stands for bits. With `bias` the layer also has a bit for each output.

    Initial weights: bits are Bernoulli(½), latent weights are standard normal (latent biases are 0), float weights are scaled
    by their fan-in.
    Optimizers, verification, packing and counting find binary weights by this class. A layer of a plugin derives from this
    class and computes with `value` (and `bias_value`).

    Raises:
        ValueError: `encoding` is none of `ENCODINGS`, or `weights` is none of bits, latent, float.
    """

    def __init__(self, shape: tuple[int, ...], encoding: str = "bipolar", weights: str = "bits", bias: bool = False):
        super().__init__()
        for name, given, known in (("encoding", encoding, ENCODINGS), ("weights", weights, _FIRST)):
            if given not in known:
                raise ValueError(f"{name}={given!r}: must be one of {', '.join(known)}")
        self.encoding, self.weights, self.shape = encoding, weights, shape
        first = _FIRST[weights]
        self.weight = nn.Parameter(first(shape))
        self.bias = nn.Parameter(torch.zeros(shape[:1]) if weights == "latent" else first(shape[:1])) if bias else None

    @property
    def value(self) -> Tensor:
        """The current values of the weights, by which the layer multiplies. They have the shape of the unpacked weights."""
        return self._value(self.weight)

    @property
    def bias_value(self) -> Tensor | None:
        """The current values that the layer adds, of the shape of `bias`; None without a bias."""
        return None if self.bias is None else self._value(self.bias)

    def _value(self, parameter: nn.Parameter) -> Tensor:
        if self.weights == "float":
            return parameter
        if takes_kernels(parameter) and not _is_packed(parameter):
            return values(parameter, self.weights == "latent", self.encoding)
        if self.weights == "latent" and self.training:
            return quantized_values(parameter, self.encoding)
        bits = self._bits(parameter)
        return encode(bits if bits.is_floating_point() else bits.float(), self.encoding)

    def _bits(self, parameter: nn.Parameter) -> Tensor:
        if self.weights == "latent":
            return quantize(parameter.detach())
        return unpack(parameter, self.shape, torch.uint8) if _is_packed(parameter) else parameter

    def bits(self) -> dict[str, Tensor]:
        """Returns the bits of `weight` and, if the layer has one, of `bias`, by name. A layer of float weights has none."""
        if self.weights == "float":
            return {}
        return {name: self._bits(p) for name, p in (("weight", self.weight), ("bias", self.bias)) if p is not None}

    @property
    def count(self) -> int:
        """The number of weights, biases included."""
        return math.prod(self.shape) + (0 if self.bias is None else self.bias.numel())

    def _convolved(self, x: Tensor, v: Tensor) -> Tensor:
        """Returns x ∗ V, zero-padded, for the values v of the layer's bits, plus the values of its biases."""
        bias = self.bias_value
        if bias is None and self.weights != "float" and takes_kernels(x):
            return convolution(x, self.weight, v)
        if bias is None and takes_pairs(x):
            return convolution(x, self.weight, v.to(x.dtype, memory_format=torch.channels_last))
        return F.conv2d(x, v, bias, padding=v.shape[2] // 2)

    def pack(self) -> None:
        """Packs the bits of `weight` for good: the parameter becomes uint8 [outputs, ⌈inputs / 8⌉], without gradient."""
        if not _is_packed(self.weight):
            self.weight = _packed(self.weight)


def _is_packed(parameter: nn.Parameter) -> bool:
    return parameter.dtype == torch.uint8


def _packed(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(pack(parameter).to(parameter.device), requires_grad=False)


@contextmanager
def packed_at_once() -> Iterator[None]:
    """Context manager: packs the bits of each layer when the layer is created, see `BinaryLayer.pack`.

    A network made in this context never has the unpacked weights of more than one layer in memory.
    """

    def packed(layer: nn.Module, name: str, parameter: Any) -> Any:
        if isinstance(layer, BinaryLayer) and layer.weights == "bits" and name == "weight" and not _is_packed(parameter):
            return _packed(parameter)
        return None  # torch then registers the parameter as it is

    hook = register_module_parameter_registration_hook(packed)
    try:
        yield
    finally:
        hook.remove()


@exact
class BinaryLinear(BinaryLayer):
    """A linear layer y = x Vᵀ, V the values of its bits: [batch, in_features] → [batch, out_features], no bias.

    Inputs of dtype uint8 are pixels and stand for x/255. On a GPU the output is float32, also under bf16 autocast, so sums of
    values are exact.

    Args:
        binary_input: the inputs are values of bits too (0 and ±1). The layer then multiplies in small integers, as for
            pixels, where the processor is fast at such products. The results are the same.
        weights: `bits`, `latent` or `float`.
    """

    def __init__(
        self, in_features: int, out_features: int, encoding: str = "bipolar", binary_input: bool = False, weights: str = "bits"
    ):
        super().__init__((out_features, in_features), encoding, weights)
        self.in_features, self.out_features, self.binary_input = in_features, out_features, binary_input

    def forward(self, x: Tensor) -> Tensor:
        if self.weights != "float" and takes_kernels(x) and x.dim() == 2:
            return linear(x, self.weight, self.value)
        if x.dtype == torch.uint8 and self.weights != "float":
            if self.encoding == "centred":
                return pixel_product(x, 2 * self.value) / 2  # pixel_product takes whole numbers, so ±½ is doubled first
            return pixel_product(x, self.value)
        x = x / 255 if x.dtype == torch.uint8 else x
        if self.encoding != "centred" and self.weights != "float" and self.binary_input:
            return binary_product(x, self.value)
        return F.linear(x, self.value)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, encoding={self.encoding}, weights={self.weights}"


@exact
class BinaryConv2d(BinaryLayer):
    """A convolution y = x ∗ V, V the values of its bits: [batch, in, H, W] → [batch, out, H, W], no bias, stride 1.

    The input is padded by kernel_size // 2 zeros at each side. Inputs of dtype uint8 are pixels and stand for x/255.

    Under bf16 autocast on a GPU a convolution of values ±1 rounds once: products are exact, sums are whole numbers that are
    added up in float32, and the output is the nearest number of bfloat16. Sums up to ±256 stay exact. A larger sum keeps its
    sign and eight bits. A sum of n inputs has a standard deviation of about √n: 256 is 7.5 standard deviations for
    n = 1152 (128 channels, 3×3), and 3.8 for n = 4608. The threshold of the next bit lies near the mean of the sums, so a
    rounded sum hardly ever changes a bit.

    Args:
        kernel_size: odd.

    Raises:
        ValueError: `kernel_size` is even.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, encoding: str = "bipolar", weights: str = "bits"
    ):
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: must be odd")
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), encoding, weights)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size

    def forward(self, x: Tensor) -> Tensor:
        x = x / 255 if x.dtype == torch.uint8 else x
        v = self.value
        return note_sums(self._convolved(x, v), x, v, v[0].numel())

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, encoding={self.encoding}, weights={self.weights}"
