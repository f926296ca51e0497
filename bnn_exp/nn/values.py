"""The operands of a layer on a GPU, in one kernel each: values of bits (threshold, encoding, dtype, memory format); pixels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnn_exp.nn.binary import two_values
from bnn_exp.nn.function import in_bf16
from bnn_exp.nn.operators import operator
from bnn_exp.nn.saved import note_values


def empty(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns an empty tensor of the shape of `weights`. Kernels of convolutions are channels-last."""
    layout = torch.channels_last if weights.dim() == 4 else torch.contiguous_format
    return torch.empty(weights.shape, dtype=dtype, device=weights.device, memory_format=layout)


@operator(
    "(Tensor weights, Tensor? threshold, float low, float high, ScalarType dtype) -> Tensor",
    kernels="bnn_exp.nn.cuda.values:above",
    launches=1,
    fake=lambda weights, threshold, low, high, dtype: empty(weights, dtype),
)
def above(weights: Tensor, threshold: Tensor | None, low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Returns `high` where weights > threshold, else `low`, as `dtype` in the shape of `weights`.

    Args:
        weights: contiguous; [outputs, inputs, height, width], or a tensor with any other number of dimensions.
        threshold: a scalar in the dtype of `weights`; None: ½, which divides the bits.
    """
    ones = weights > (0.5 if threshold is None else threshold)
    return empty(weights, dtype).copy_(torch.where(ones, high, low))


@operator(
    "(Tensor pixels, int width, ScalarType dtype) -> Tensor",
    kernels="bnn_exp.nn.cuda.values:numbers_of_pixels",
    launches=1,
    fake=lambda pixels, width, dtype: pixels.new_empty(len(pixels), width, dtype=dtype),
)
def numbers_of_pixels(pixels: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Returns pixels, uint8 [rows, inputs], as `dtype` [rows, width], with columns of 0 after the last input.

    torch's own conversion takes three times as long, because it reads single bytes.
    """
    return F.pad(pixels, (0, width - pixels.shape[1])).to(dtype)


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, latent: bool, encoding: str, dtype: torch.dtype) -> Tensor:
        ctx.dtype, weights = weights.dtype, weights.contiguous()
        return above(weights, weights.mean() if latent else None, *two_values(encoding), dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.to(ctx.dtype, memory_format=torch.contiguous_format), None, None, None


def values(weights: Tensor, latent: bool, encoding: str) -> Tensor:
    """Returns the values of bits or of latent weights, bfloat16 under autocast to bfloat16, else in the dtype of `weights`.

    The gradient of a value passes unchanged to its bit or latent weight.
    """
    dtype = torch.bfloat16 if in_bf16(weights) else weights.dtype
    return note_values(_Values.apply(weights, latent, encoding, dtype), *two_values(encoding))
