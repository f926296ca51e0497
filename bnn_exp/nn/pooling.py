"""Max-pooling with windows that do not overlap. The operators keep one byte for each window for the backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnn_exp.nn.function import is_compiled, takes_kernels
from bnn_exp.nn.operators import operator

_LARGEST = 15  # the largest side of a window for the operators, which store a place in the window as a byte


def max_pool(x: Tensor, size: int) -> Tensor:
    """Returns the largest number of each window of size × size positions, as `F.max_pool2d(x, size)`.

    Args:
        x: [batch, channels, height, width]. A size of 1 takes any shape, and returns x itself.
    """
    if size == 1:
        return x
    if (takes_kernels(x) or is_compiled(x)) and fits(x, size):
        return _MaxPool.apply(x, size)
    return F.max_pool2d(x, size)


def fits(x: Tensor, size: int) -> bool:
    """Returns True if the operators can pool x by windows of this size."""
    known = x.dtype in (torch.float32, torch.bfloat16) and x.dim() == 4 and len(x) > 0
    return known and size <= min(_LARGEST, *x.shape[2:])


def nhwc(x: Tensor) -> Tensor:
    """Returns x as contiguous [batch, height, width, channels]: a view of channels-last images."""
    return x.permute(0, 2, 3, 1).contiguous()


@operator(
    "(Tensor x, int size) -> (Tensor, Tensor places)",
    kernels="bnn_exp.nn.cuda.pooling:pooled",
    cpu="bnn_exp.bits.cpu.pooling:pooled",
    launches=1,
    fake=lambda x, size: tuple(x.new_empty(pooled_shape(x, size), dtype=dtype) for dtype in (x.dtype, torch.uint8)),
)
def pooled(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the largest number of each window, and its place in the window: uint8, size · row + column.

    The first of several largest numbers counts.

    Args:
        x: [batch, height, width, channels], contiguous.

    Returns:
        Two tensors [batch, height // size, width // size, channels].
    """
    _, height, width, _ = pooled_shape(x, size)
    windows = x[:, : height * size, : width * size].unflatten(1, (height, size)).unflatten(3, (width, size))
    largest = windows.permute(0, 1, 3, 5, 2, 4).flatten(4).max(4)
    return largest.values, largest.indices.to(torch.uint8)


@operator(
    "(Tensor grad, Tensor places, int size, int height, int width) -> Tensor",
    kernels="bnn_exp.nn.cuda.pooling:pooled_gradient",
    cpu="bnn_exp.bits.cpu.pooling:pooled_gradient",
    launches=1,
    fake=lambda grad, places, size, height, width: grad.new_empty(len(grad), height, width, grad.shape[3]),
)
def pooled_gradient(grad: Tensor, places: Tensor, size: int, height: int, width: int) -> Tensor:
    """Returns the gradient at the images [batch, height, width, channels] from the gradient of `pooled`.

    Args:
        grad: the gradient at the largest numbers, contiguous.
        places: the places of the largest numbers.
    """
    place = torch.arange(size * size, device=grad.device)
    windows = torch.where(places[..., None] == place, grad[..., None], 0).unflatten(4, (size, size))
    out = grad.new_zeros(len(grad), height, width, grad.shape[3])
    part = windows.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)
    out[:, : part.shape[1], : part.shape[2]] = part
    return out


def pooled_shape(x: Tensor, size: int) -> tuple[int, int, int, int]:
    """Returns the shape of the results of `pooled`."""
    batch, height, width, channels = x.shape
    return batch, height // size, width // size, channels


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.size, ctx.sides = size, x.shape[2:]
        y, places = pooled(nhwc(x), size)
        ctx.save_for_backward(places)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return pooled_gradient(nhwc(grad), *ctx.saved_tensors, ctx.size, *ctx.sides).permute(0, 3, 1, 2), None
