"""The operators of `bnn_exp.nn.pooled_norm` on a CPU, by the kernels of `bnn_exp.bits.cpu.kernels.pooled_norm`.

A number of channels that is no multiple of 16 takes the definitions in torch.
"""

from inspect import unwrap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.channels import centering, flat, readable
from bnn_exp.bits.cpu.kernels import pooled_norm as kernels
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.nn import pooled_norm
from bnn_exp.nn.batch_norm import LOWEST, scale_and_shift
from bnn_exp.nn.pooling import pooled_shape


def normalize_pooled(z: Tensor, size: int, *given: Any) -> tuple[Tensor, Tensor]:
    *norm, activation, dtype = given
    shape = pooled_shape(z, size)
    out, places = z.new_empty(shape, dtype=dtype), z.new_empty(shape, dtype=torch.uint8)
    if not readable(z, out):
        return unwrap(pooled_norm.normalize_pooled)(z, size, *given)
    arrays = flat(z), tuple(z.shape), size, *(flat(vector) for vector in scale_and_shift(*norm))
    to = LOWEST[activation], flat(out), flat(places)
    share_out(lambda begin, end: kernels.set_pooled(*arrays, begin, end, *to), len(z))
    return out, places


def normalize_pooled_gradient(grad: Tensor, places: Tensor, z: Tensor, size: int, *norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    if not readable(grad, z):
        return unwrap(pooled_norm.normalize_pooled_gradient)(grad, places, z, size, *norm)
    mean, variance, weight, _, eps = norm
    arrays, center = (flat(grad), flat(places), flat(z), tuple(z.shape), size), flat(mean)
    totals, products = (np.empty((len(z), z.shape[3]), np.float32) for _ in range(2))
    sums = totals.reshape(-1), products.reshape(-1)
    share_out(lambda begin, end: kernels.image_sums(*arrays, center, begin, end, *sums), len(z))
    scale, slope, offset, of_weight, of_bias = centering(totals, products, z.numel() // z.shape[3], variance, weight, eps)
    out = torch.empty_like(z)
    vectors, to = (flat(scale), center, flat(slope), flat(offset)), flat(out)
    share_out(lambda begin, end: kernels.set_image_gradients(*arrays, *vectors, begin, end, to), len(z))
    return out, of_weight, of_bias
