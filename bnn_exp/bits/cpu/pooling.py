"""The operators of `bnn_exp.nn.pooling` on a CPU, by the kernels of `bnn_exp.bits.cpu.kernels.pooling`.

A number of channels that is no multiple of 16 takes the definitions in torch.
"""

from inspect import unwrap

import torch
from torch import Tensor

from bnn_exp.bits.cpu.channels import flat, readable
from bnn_exp.bits.cpu.kernels import pooling as kernels
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.nn import pooling


def pooled(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the largest number of each window and its place, see `bnn_exp.nn.pooling.pooled`."""
    if not readable(x):
        return unwrap(pooling.pooled)(x, size)
    shape = pooling.pooled_shape(x, size)
    out, places = x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)
    given, to = (flat(x), tuple(x.shape), size), (flat(out), flat(places))
    share_out(lambda begin, end: kernels.set_largest(*given, begin, end, *to), shape[0] * shape[1])
    return out, places


def pooled_gradient(grad: Tensor, places: Tensor, size: int, height: int, width: int) -> Tensor:
    """Returns the gradient at the images, see `bnn_exp.nn.pooling.pooled_gradient`."""
    if not readable(grad):
        return unwrap(pooling.pooled_gradient)(grad, places, size, height, width)
    batch, rows, _, channels = grad.shape
    out = grad.new_empty(batch, height, width, channels)
    given, to = (flat(grad), flat(places), tuple(out.shape), size), flat(out)
    share_out(lambda begin, end: kernels.spread(*given, begin, end, to), batch * rows)
    return out
