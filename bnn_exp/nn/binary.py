"""What a binary weight is, and the layers made of it.

A binary weight is a bit: its tensor holds 0. and 1. and nothing else, at every moment of training. What a layer multiplies
by is the *value* of the bit, which its `encoding` gives; so "bipolar" costs nothing, and verification means one thing for
every network. The gradient that reaches a bit is the gradient by its value, unscaled: that is the `g` of the papers' rules.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.nn.product import binary_product, pixel_product

ENCODINGS = ("boolean", "bipolar")


class NotBinary(ValueError):
    """A binary tensor holds something other than 0 and 1."""


def encode(bits: Tensor, encoding: str) -> Tensor:
    """The values of `bits` (any shape, 0. or 1.): b for `boolean`, 2b − 1 for `bipolar`; d value / d bit counts as 1."""
    if encoding == "boolean":
        return bits
    return 2 * bits - 1 if not bits.requires_grad else bits + (bits.detach() - 1)


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, encoding: str, window: float | None) -> Tensor:
        ctx.windowed = window is not None
        if ctx.windowed:
            ctx.save_for_backward(x.abs() <= window)
        return encode(torch.ge(x, 0, out=torch.empty_like(x)), encoding)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.saved_tensors[0] if ctx.windowed else grad, None, None


def binarize(x: Tensor, encoding: str = "bipolar", window: float | None = 1.0) -> Tensor:
    """The binary activation: the value of the bit 1[x ≥ 0], same shape and dtype as `x`.

    Its gradient is straight-through: passed on where |x| ≤ `window`, everywhere if `window` is None
    (Bengio et al. 2013, arXiv 1308.3432; the window: Courbariaux et al. 2016, arXiv 1602.02830, eq. 4).
    """
    return _Binarize.apply(x, encoding, window)


class BinaryLayer(nn.Module):
    """A layer whose `weight` is bits: Bernoulli(½) at first, float32, shape `shape`. What trains it must keep it binary.

    Being a BinaryLayer is what makes a weight binary: optimizers, verification, packing and counting all ask
    `binary_parameters`. A layer of your own joins them by deriving from this class.

    Raises:
        ValueError: an encoding that is not in `ENCODINGS`.
    """

    def __init__(self, shape: tuple[int, ...], encoding: str = "bipolar"):
        super().__init__()
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding={encoding!r}: must be one of {', '.join(ENCODINGS)}")
        self.encoding = encoding
        self.weight = nn.Parameter(torch.full(shape, 0.5).bernoulli_())

    @property
    def value(self) -> Tensor:
        """What the layer multiplies by, of the shape of `weight`."""
        return encode(self.weight, self.encoding)


class BinaryLinear(BinaryLayer):
    """y = x Vᵀ with V the values of the bits: [batch, in_features] → [batch, out_features], no bias.

    Inputs of dtype uint8 are pixels, and stand for x/255.

    Args:
        binary_input: the inputs are values of bits too (0 and ±1). Like pixels they are multiplied in small integers
            where the processor is quick at that: the same numbers, sooner.
    """

    def __init__(self, in_features: int, out_features: int, encoding: str = "bipolar", binary_input: bool = False):
        super().__init__((out_features, in_features), encoding)
        self.in_features, self.out_features, self.binary_input = in_features, out_features, binary_input

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            return pixel_product(x, self.value)
        return binary_product(x, self.value) if self.binary_input else F.linear(x, self.value)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, encoding={self.encoding}"


def binary_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The binary weights of a network with their names, in the order of its modules, each once."""
    for name, module in network.named_modules():
        if isinstance(module, BinaryLayer):
            yield f"{name}.weight" if name else "weight", module.weight


def real_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """All parameters that are not binary weights, with their names."""
    binary = {id(weight) for _, weight in binary_parameters(network)}
    for name, parameter in network.named_parameters():
        if id(parameter) not in binary:
            yield name, parameter


@torch.no_grad()
def verify_binary(network: nn.Module) -> dict[str, int]:
    """Count the ones of every binary weight, by name, having checked that it holds nothing but 0 and 1.

    Raises:
        NotBinary: naming the tensor, the first offending value and its place.
    """
    ones = {}
    for name, weight in binary_parameters(network):
        wrong = (weight != 0) & (weight != 1)
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            raise NotBinary(f"{name}{list(place)} is {weight[place].item():g}: a binary weight must be 0 or 1")
        ones[name] = int(weight.sum(dtype=torch.float64))
    return ones
