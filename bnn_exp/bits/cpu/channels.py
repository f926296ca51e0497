"""The operators of `bnn_exp.nn.batch_norm` on a CPU, by the kernels of `bnn_exp.bits.cpu.kernels.channels`.

A number of channels that is no multiple of 16 takes the definitions in torch.
"""

from inspect import unwrap
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.kernels import channels as kernels
from bnn_exp.bits.cpu.kernels.channels import CHUNK
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.threads import share_chunks
from bnn_exp.nn import batch_norm

_ABOVE_0 = float(np.finfo(np.float32).smallest_subnormal)


def batch_statistics(z: Tensor, *running: Any) -> tuple[Tensor, Tensor]:
    """Returns the mean and the variance of each channel, see `bnn_exp.nn.batch_norm.batch_statistics`."""
    if not readable(z):
        return unwrap(batch_norm.batch_statistics)(z, *running)
    means, squares = _of_chunks(z)
    given, to = (flat(z), z.shape[1]), (means.reshape(-1), squares.reshape(-1))
    share_chunks(lambda begin, end: kernels.chunk_moments(*given, begin, end, *to), len(z), CHUNK)
    mean, variance = torch.empty(z.shape[1]), torch.empty(z.shape[1])
    kernels.join_moments(means, squares, len(z), mean.numpy(), variance.numpy())
    batch_norm.update_running(mean, variance, len(z), *running)
    return mean, variance


def normalize(z: Tensor, *given: Any) -> Tensor:
    """Returns the activation of a BatchNorm's output, see `bnn_exp.nn.batch_norm.normalize`."""
    *norm, activation, low, high, dtype = given
    out = torch.empty_like(z, dtype=dtype)
    if not readable(z, out):
        return unwrap(batch_norm.normalize)(z, *given)
    affine = Affine(*norm)
    arrays, to = (flat(z), z.shape[1], affine.scale, affine.shift), flat(out)
    if activation == "binary":
        share_chunks(lambda begin, end: kernels.set_values(*arrays, begin, end, low, high, to), len(z), CHUNK)
    else:
        lowest = batch_norm.LOWEST[activation]
        share_chunks(lambda begin, end: kernels.set_activations(*arrays, begin, end, lowest, to), len(z), CHUNK)
    return out


def normalize_gradient(grad: Tensor, z: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients at z, weight and bias, see `bnn_exp.nn.batch_norm.normalize_gradient`."""
    if not readable(grad, z):
        return unwrap(batch_norm.normalize_gradient)(grad, z, *given)
    *norm, activation, window = given
    affine = Affine(*norm)
    between = {"binary": (-window, window), "relu": (_ABOVE_0, inf), "identity": (-inf, inf)}[activation]
    arrays = flat(grad), flat(z), z.shape[1], affine.scale, affine.shift, affine.mean
    totals, products = _of_chunks(z)
    sums = totals.reshape(-1), products.reshape(-1)
    share_chunks(lambda begin, end: kernels.chunk_sums(*arrays, begin, end, *between, *sums), len(z), CHUNK)
    *rest, of_weight, of_bias = affine.centering(totals, products, len(z))
    out = torch.empty_like(z)
    to = flat(out)
    share_chunks(lambda begin, end: kernels.set_gradients(*arrays, *rest, begin, end, *between, to), len(z), CHUNK)
    return out, torch.from_numpy(of_weight), torch.from_numpy(of_bias)


class Affine:
    """A BatchNorm as the kernels take it: y = z · scale + shift. The arguments are vectors [channels], and the number eps."""

    def __init__(self, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        self.mean = mean.numpy()
        self.inverse = 1 / np.sqrt(variance.numpy() + np.float32(eps))
        self.scale = self.inverse if weight is None else self.inverse * weight.detach().numpy()
        self.shift = (0 if bias is None else bias.detach().numpy()) - self.mean * self.scale

    def centering(self, totals: np.ndarray, products: np.ndarray, rows: int) -> tuple[np.ndarray, ...]:
        """Returns the vectors of the gradient at z, g · scale − (z − mean) · slope − offset, for a batch of `rows` rows.

        Args:
            totals, products: parts of the sums Σ g and Σ g · (z − mean), [parts, channels].

        Returns:
            slope, offset, and the gradients at BatchNorm's weight and at its bias: float32 [channels].
        """
        of_bias, product = (parts.sum(0, dtype=np.float64).astype(np.float32) for parts in (totals, products))
        of_weight, per_row = self.inverse * product, self.scale / np.float32(rows)
        return per_row * self.inverse * of_weight, per_row * of_bias, of_weight, of_bias


def flat(x: Tensor) -> np.ndarray:
    """Returns the numbers of a contiguous tensor as the kernels take them: a vector, with bfloat16 as uint16."""
    x = x.detach().view(-1)
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def readable(*tensors: Tensor) -> bool:
    """Returns True if the kernels can read tensors whose last dimension is the channels."""
    return all(x.shape[-1] % WIDTH == 0 and x.dtype in (torch.float32, torch.bfloat16) for x in tensors)


def _of_chunks(z: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns two empty arrays, float32 [chunks, channels]."""
    shape = -(-len(z) // CHUNK), z.shape[1]
    return np.empty(shape, np.float32), np.empty(shape, np.float32)
