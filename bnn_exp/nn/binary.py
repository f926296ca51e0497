"""What a binary weight is, and the layers made of it.

A binary weight is a bit, 0 or 1. What a layer multiplies by is the *value* of the bit, which its `encoding` gives; so
"bipolar" costs nothing, and verification means one thing for every network. A layer keeps its weights in one of three ways:

- `bits`: the parameter holds 0. and 1. and nothing else, at every moment of training; a rule of `bnn_exp.optim` trains it.
- `latent`: the parameter is real, and its bits are 1[p > mean(p)]; any optimizer trains it, straight through the threshold.
- `float`: the parameter is real and is used as it is: not binary, the same network to compare with.

The gradient that reaches a parameter is the gradient by the value, unscaled: that is the `g` of the papers' rules.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.nn.exact import exact
from bnn_exp.nn.function import applied
from bnn_exp.nn.product import binary_product, pixel_product

ENCODINGS = ("boolean", "bipolar", "centred")
WEIGHTS = ("bits", "latent", "float")


class NotBinary(ValueError):
    """A binary tensor holds something other than 0 and 1."""


def encode(bits: Tensor, encoding: str) -> Tensor:
    """The values of `bits` (any shape, 0. or 1.): b for `boolean`, 2b − 1 for `bipolar`, b − ½ for `centred`.

    The derivative of a value by its bit counts as 1.
    """
    if encoding == "boolean":
        return bits
    if encoding == "centred":
        return bits - 0.5
    return (2 * bits).sub_(1) if not bits.requires_grad else bits + (bits.detach() - 1)


def quantize(latent: Tensor) -> Tensor:
    """The bits of real weights: 1 above their mean, else 0; same shape and dtype (Cabral et al., arXiv 2509.07025)."""
    return (latent > latent.mean()).to(latent.dtype)


class _Quantized(torch.autograd.Function):
    """The values of the bits of real weights, with a straight-through gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(latent: Tensor, encoding: str) -> Tensor:
        return encode(quantize(latent), encoding)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, encoding: str, window: float | None) -> Tensor:
        return encode(torch.ge(x, 0, out=torch.empty_like(x)), encoding)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        x, _, window = inputs
        ctx.windowed = window is not None
        if ctx.windowed:
            ctx.save_for_backward(x.abs() <= window)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.saved_tensors[0] if ctx.windowed else grad, None, None

    @staticmethod
    def vmap(info, in_dims: tuple, x: Tensor, encoding: str, window: float | None) -> tuple[Tensor, int]:
        return binarize(x, encoding, window), in_dims[0]  # number by number


_quantized, _binarize = applied(_Quantized), applied(_Binarize)


def binarize(x: Tensor, encoding: str = "bipolar", window: float | None = 1.0) -> Tensor:
    """The binary activation: the value of the bit 1[x ≥ 0], same shape and dtype as `x`.

    Its gradient is straight-through: passed on where |x| ≤ `window`, everywhere if `window` is None
    (Bengio et al. 2013, arXiv 1308.3432; the window: Courbariaux et al. 2016, arXiv 1602.02830, eq. 4).
    """
    return _binarize(x, encoding, window)


_at_once = ContextVar("at_once", default=False)


@contextmanager
def packed_at_once() -> Iterator[None]:
    """Layers of bits made within it are packed before the next is made, see `BinaryLayer.pack`."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


class BinaryLayer(nn.Module):
    """A layer whose `weight`, float32 of `shape`, stands for bits, and with `bias` a bit for each of its outputs too.

    Bits begin as Bernoulli(½), latents as normal numbers (their bias at 0), floats by their fan-in. Being a BinaryLayer is
    what makes a weight binary: optimizers, verification, packing and counting all ask for them through this class. A layer
    of your own joins them by deriving from it and computing with `value` (and `bias_value`).

    Raises:
        ValueError: an encoding that is not in `ENCODINGS`, or weights that are not in `WEIGHTS`.
    """

    def __init__(self, shape: tuple[int, ...], encoding: str = "bipolar", weights: str = "bits", bias: bool = False):
        super().__init__()
        for name, given, known in (("encoding", encoding, ENCODINGS), ("weights", weights, WEIGHTS)):
            if given not in known:
                raise ValueError(f"{name}={given!r}: must be one of {', '.join(known)}")
        self.encoding, self.weights = encoding, weights
        first = {
            "bits": lambda size: torch.full(size, 0.5).bernoulli_(),
            "latent": torch.randn,
            "float": lambda size: nn.init.kaiming_normal_(torch.empty(size)) if len(size) > 1 else torch.zeros(size),
        }[weights]
        self.shape = shape
        self.weight = nn.Parameter(first(shape))
        self.bias = nn.Parameter(torch.zeros(shape[:1]) if weights == "latent" else first(shape[:1])) if bias else None
        if weights == "bits" and not bias and _at_once.get():
            self.pack()

    @property
    def value(self) -> Tensor:
        """The values that the layer multiplies by, of the shape of `weight`: of the weights as they are now."""
        return self._value("weight")

    @property
    def bias_value(self) -> Tensor | None:
        """What the layer adds, of the shape of `bias`; None where it has none."""
        return None if self.bias is None else self._value("bias")

    def _value(self, name: str) -> Tensor:
        parameter = getattr(self, name)
        if self.weights == "float":
            return parameter
        if parameter.dtype == torch.uint8:
            return encode(self.bits()[name].float(), self.encoding)
        if self.weights == "bits":
            return encode(parameter, self.encoding)
        if self.training:
            return _quantized(parameter, self.encoding)
        return encode(quantize(parameter.detach()), self.encoding)

    @property
    def count(self) -> int:
        """How many weights it has, biases included."""
        return math.prod(self.shape) + (0 if self.bias is None else self.bias.numel())

    def pack(self) -> None:
        """Keep the bits of `weight` packed from now on: a parameter without gradient, uint8 [outputs, ⌈inputs / 8⌉]."""
        from bnn_exp.bits import pack

        if self.weight.dtype == torch.uint8:
            return
        self.weight = nn.Parameter(pack(self.weight).to(self.weight.device), requires_grad=False)

    def bits(self) -> dict[str, Tensor]:
        """The bits of `weight` and, if it has one, of `bias`, by these names; nothing for a layer of float weights."""
        from bnn_exp.bits import unpack

        if self.weights == "float":
            return {}
        if self.weight.dtype == torch.uint8:
            return {"weight": unpack(self.weight, self.shape, torch.uint8)}
        own = {name: p for name, p in (("weight", self.weight), ("bias", self.bias)) if p is not None}
        return own if self.weights == "bits" else {name: quantize(p.detach()) for name, p in own.items()}


@exact
class BinaryLinear(BinaryLayer):
    """y = x Vᵀ with V the values of the bits: [batch, in_features] → [batch, out_features], no bias.

    Inputs of dtype uint8 are pixels, and stand for x/255.

    Args:
        binary_input: the inputs are values of bits too (0 and ±1). Like pixels they are multiplied in small integers
            where the processor is quick at that: the same numbers, sooner.
        weights: `bits`, `latent` or `float`.
    """

    def __init__(
        self, in_features: int, out_features: int, encoding: str = "bipolar", binary_input: bool = False, weights: str = "bits"
    ):
        super().__init__((out_features, in_features), encoding, weights)
        self.in_features, self.out_features, self.binary_input = in_features, out_features, binary_input

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8 and self.weights != "float":
            if self.encoding == "centred":
                return pixel_product(x, 2 * self.value) / 2  # the same number, by way of whole ones
            return pixel_product(x, self.value)
        x = x / 255 if x.dtype == torch.uint8 else x
        if self.encoding != "centred" and self.weights != "float" and self.binary_input:
            return binary_product(x, self.value)
        return F.linear(x, self.value)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, encoding={self.encoding}, weights={self.weights}"


@exact
class BinaryConv2d(BinaryLayer):
    """y = x ∗ V with V the values of the bits: [batch, in, H, W] → [batch, out, H, W], no bias. Its input is always
    padded by zeros, kernel_size // 2 at each side, and the stride is 1.

    Inputs of dtype uint8 are pixels, and stand for x/255.

    Args:
        kernel_size: odd.

    Raises:
        ValueError: an even kernel.
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
        return F.conv2d(x, self.value, padding=self.kernel_size // 2)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, encoding={self.encoding}, weights={self.weights}"


def binary_layers(network: nn.Module) -> Iterator[tuple[str, BinaryLayer]]:
    """The layers of a network that hold binary weights (or floats in their place), with their names."""
    for name, module in network.named_modules():
        if isinstance(module, BinaryLayer):
            yield name, module


def named_bits(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All bits of a network, those of latents too, by the names of the parameters that hold them or stand for them."""
    for name, layer in binary_layers(network):
        for own, bits in layer.bits().items():
            yield f"{name}.{own}" if name else own, bits


def binary_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that hold bits themselves, with their names, in the order of the modules."""
    for name, parameter, layer in _parameters(network):
        if layer is not None and layer.weights == "bits":
            yield name, parameter


def latent_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The real parameters that stand for bits (or, in a network of float weights, in their place), with their names."""
    for name, parameter, layer in _parameters(network):
        if layer is not None and layer.weights != "bits":
            yield name, parameter


def real_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """All other parameters, such as BatchNorm's, with their names."""
    for name, parameter, layer in _parameters(network):
        if layer is None:
            yield name, parameter


def _parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter, BinaryLayer | None]]:
    """Every parameter with its name and the BinaryLayer whose weight or bias it is."""
    owners = {id(p): layer for _, layer in binary_layers(network) for p in (layer.weight, layer.bias) if p is not None}
    for name, parameter in network.named_parameters():
        yield name, parameter, owners.get(id(parameter))


@torch.no_grad()
def verify_binary(network: nn.Module) -> dict[str, int]:
    """Count the ones of every binary weight, by name, having checked that it holds nothing but 0 and 1.

    Raises:
        NotBinary: naming the tensor, the first offending value and its place.
    """
    ones = {}
    for name, bits in named_bits(network):
        try:
            check_bits(name, bits)
        except NotBinary as error:
            raise NotBinary(f"{error}\nan average of bits (EMA, SWA) is none: bnn_exp.AveragedModel copies them") from None
        ones[name] = int(bits.sum(dtype=torch.float64))
    return ones


@torch.no_grad()
def check_bits(name: str, bits: Tensor) -> None:
    """See that `bits` (any shape and dtype) are 0 and 1 alone.

    Raises:
        NotBinary: they are not: `name`, the first offending value and its place.
    """
    wrong = (bits != 0) & (bits != 1)
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise NotBinary(f"{name}{list(place)} is {bits[place].item():g}: a binary weight must be 0 or 1")
