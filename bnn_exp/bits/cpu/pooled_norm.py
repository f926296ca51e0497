"""The operators of `bnn_exp.nn.pooled_norm` on a CPU, by the kernels of `bnn_exp.bits.cpu.kernels.pooled_norm`.

A number of channels that is no multiple of 16 takes the definitions in torch.
"""

from inspect import unwrap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.channels import Affine, flat, readable
from bnn_exp.bits.cpu.kernels import pooled_norm as kernels
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.nn import pooled_norm
from bnn_exp.nn.batch_norm import LOWEST
from bnn_exp.nn.pooling import pooled_shape


def normalize_pooled(z: Tensor, size: int, *given: Any) -> tuple[Tensor, Tensor]:
    """Returns the largest activation of each window and its place, see `bnn_exp.nn.pooled_norm.normalize_pooled`."""
    *norm, activation, dtype = given
    shape = pooled_shape(z, size)
    out, places = z.new_empty(shape, dtype=dtype), z.new_empty(shape, dtype=torch.uint8)
    if not readable(z, out):
        return unwrap(pooled_norm.normalize_pooled)(z, size, *given)
    affine = Affine(*norm)
    arrays, to = (flat(z), tuple(z.shape), size, affine.scale, affine.shift), (LOWEST[activation], flat(out), flat(places))
    share_out(lambda begin, end: kernels.set_pooled(*arrays, begin, end, *to), len(z))
    return out, places


def normalize_pooled_gradient(grad: Tensor, places: Tensor, z: Tensor, size: int, *norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients at z, weight and bias, see `bnn_exp.nn.pooled_norm.normalize_pooled_gradient`."""
    if not readable(grad, z):
        return unwrap(pooled_norm.normalize_pooled_gradient)(grad, places, z, size, *norm)
    affine, arrays = Affine(*norm), (flat(grad), flat(places), flat(z), tuple(z.shape), size)
    totals, products = (np.empty((len(z), z.shape[3]), np.float32) for _ in range(2))
    sums = totals.reshape(-1), products.reshape(-1)
    share_out(lambda begin, end: kernels.image_sums(*arrays, affine.mean, begin, end, *sums), len(z))
    *rest, of_weight, of_bias = affine.centering(totals, products, z.numel() // z.shape[3])
    out = torch.empty_like(z)
    vectors, to = (affine.scale, affine.mean, *rest), flat(out)
    share_out(lambda begin, end: kernels.set_image_gradients(*arrays, *vectors, begin, end, to), len(z))
    return out, torch.from_numpy(of_weight), torch.from_numpy(of_bias)
