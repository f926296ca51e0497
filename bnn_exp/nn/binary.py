"""Bits and their values: encodings, the threshold of latent weights, the binary activation, and the check that bits are bits.

A binary weight is a bit, 0 or 1. A layer multiplies by the *value* of the bit, which the layer's `encoding` defines. Bits are
the same for every encoding, so one check covers every network.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnn_exp.nn.function import applied
from bnn_exp.nn.saved import note_values

_VALUES = {"boolean": (0.0, 1.0), "bipolar": (-1.0, 1.0), "centred": (-0.5, 0.5)}  # the values of a bit 0 and of a bit 1
ENCODINGS = tuple(_VALUES)


class NotBinary(ValueError):
    """The error of a binary tensor that holds a number other than 0 and 1."""


def encode(bits: Tensor, encoding: str) -> Tensor:
    """Returns the values of `bits` b (any shape, 0. or 1.): b for `boolean`, 2b − 1 for `bipolar`, b − ½ for `centred`.

    The derivative of a value with respect to its bit counts as 1.
    """
    if encoding == "boolean":
        return bits
    if encoding == "centred":
        return bits - 0.5
    return (2 * bits).sub_(1) if not bits.requires_grad else bits + (bits.detach() - 1)


def two_values(encoding: str) -> tuple[float, float]:
    """Returns the values of a bit 0 and of a bit 1 in this encoding."""
    return _VALUES[encoding]


def quantize(latent: Tensor) -> Tensor:
    """Returns the bits of latent weights, same shape and dtype: 1 above the mean, else 0 (Cabral et al., arXiv 2509.07025)."""
    return (latent > latent.mean()).to(latent.dtype)


class _Quantized(torch.autograd.Function):
    """The values of the bits of latent weights, with a straight-through gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(latent: Tensor, encoding: str) -> Tensor:
        return encode(quantize(latent), encoding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, encoding: str, window: float | None) -> Tensor:
        if torch.compiler.is_compiling():  # torch.compile leaves its graph at an `out` that is channels-last
            return encode((x >= 0).to(x.dtype), encoding)
        return encode(torch.ge(x, 0, out=torch.empty_like(x)), encoding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, _, window = inputs
        ctx.windowed = window is not None
        if ctx.windowed:
            ctx.save_for_backward(x.abs() <= window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.saved_tensors[0] if ctx.windowed else grad, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, encoding: str, window: float | None) -> tuple[Tensor, int]:
        return binarize(x, encoding, window), in_dims[0]  # the function is elementwise, so the batch dimension stays


quantized_values, _binarize = applied(_Quantized), applied(_Binarize)


def binarize(x: Tensor, encoding: str = "bipolar", window: float | None = 1.0) -> Tensor:
    """The binary activation: returns the value of the bit 1[x ≥ 0], same shape and dtype as `x`.

    Its gradient is straight-through: it passes where |x| ≤ `window`, or everywhere if `window` is None
    (Bengio et al. 2013, arXiv 1308.3432; the window: Courbariaux et al. 2016, arXiv 1602.02830, eq. 4).
    """
    return note_values(_binarize(x, encoding, window), *_VALUES[encoding])


@dataclass(frozen=True)
class Binarize:
    """The function `binarize` with its encoding and its window, as a value that other code can recognise."""

    encoding: str = "bipolar"
    window: float | None = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return binarize(x, self.encoding, self.window)


@torch.no_grad()
def check_bits(name: str, bits: Tensor) -> None:
    """Checks that `bits` (any shape and dtype) are all 0 or 1.

    Raises:
        NotBinary: a number is neither 0 nor 1. The message says `name`, the first such number and its position.
    """
    wrong = (bits != 0) & (bits != 1)
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise NotBinary(f"{name}{list(place)} is {bits[place].item():g}: a binary weight must be 0 or 1")
