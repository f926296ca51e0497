"""The products of a layer that the packed engine trains: as those of `bnn_exp.nn.product`, with gradients by factors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn_exp.bits.training import BitFactors, PixelFactors, bit_columns, bit_sums, input_gradient, pixel_columns
from bnn_exp.nn.product import binary_product, pixel_product, pixel_sums


@dataclass(frozen=True)
class Products:
    """The products of one layer. Its weights get no `grad`: in the backward pass `hand_over` is called with its factors.

    Args:
        hand_over: takes BitFactors or PixelFactors; it may change the weights.
        zero: what a bit 0 stands for, in weights and inputs; 1 stands for 1.
    """

    hand_over: Callable[[BitFactors | PixelFactors], None]
    zero: float

    def of_bits(self, x: Tensor, v: Tensor) -> Tensor:
        """As `binary_product`."""
        return _OfBits.apply(x, v, self) if _trains(v) else binary_product(x, v)

    def of_pixels(self, x: Tensor, v: Tensor) -> Tensor:
        """As `pixel_product`."""
        return _OfPixels.apply(x, v, self) if _trains(v) else pixel_product(x, v)


def _trains(v: Tensor) -> bool:
    return torch.is_grad_enabled() and v.requires_grad


class _OfBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, v: Tensor, layer: Products) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(bit_columns(x), v)
        return bit_sums(x, v, layer.zero)

    @staticmethod
    def backward(ctx, grad: Tensor):
        columns, v = ctx.saved_tensors
        to_inputs = input_gradient(grad, v, ctx.layer.zero) if ctx.needs_input_grad[0] else None
        ctx.layer.hand_over(BitFactors(grad, columns, ctx.layer.zero))  # last: v may be the weights themselves
        return to_inputs, None, None


class _OfPixels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, v: Tensor, layer: Products) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return pixel_sums(x, v).div_(255)

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.layer.hand_over(PixelFactors(grad, pixel_columns(ctx.saved_tensors[0])))
        return None, None, None
