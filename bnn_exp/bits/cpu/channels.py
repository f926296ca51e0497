"""The operators of `bnn_exp.nn.batch_norm` on a CPU, by the kernels of `bnn_exp.bits.cpu.kernels.channels`.

A number of channels that is no multiple of 16 takes the definitions in torch.
"""

from collections.abc import Callable
from inspect import unwrap
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.kernels import channels as kernels
from bnn_exp.bits.cpu.kernels.channels import CHUNK
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.nn import batch_norm

_ABOVE_0 = float(np.finfo(np.float32).smallest_subnormal)


def batch_statistics(z: Tensor, *running: Any) -> tuple[Tensor, Tensor]:
    if not readable(z):
        return unwrap(batch_norm.batch_statistics)(z, *running)
    means, squares = _of_chunks(z)
    given, to = (flat(z), z.shape[1]), (means.reshape(-1), squares.reshape(-1))
    _share(lambda begin, end: kernels.chunk_moments(*given, begin, end, *to), len(z))
    # Chan et al. 1979: the moments of a whole from the moments of its parts.
    counts = np.minimum(CHUNK, len(z) - CHUNK * np.arange(len(means)))[:, None]
    mean = (means * counts).sum(0) / len(z)
    variance = (squares + counts * np.square(means - mean)).sum(0) / len(z)
    moments = torch.from_numpy(mean).float(), torch.from_numpy(variance).float()
    batch_norm.update_running(*moments, len(z), *running)
    return moments


def normalize(z: Tensor, *given: Any) -> Tensor:
    *norm, activation, low, high, dtype = given
    out = torch.empty_like(z, dtype=dtype)
    if not readable(z, out):
        return unwrap(batch_norm.normalize)(z, *given)
    arrays = flat(z), z.shape[1], *(flat(vector) for vector in batch_norm.scale_and_shift(*norm))
    to = flat(out)
    if activation == "binary":
        _share(lambda begin, end: kernels.set_values(*arrays, begin, end, low, high, to), len(z))
    else:
        lowest = batch_norm.LOWEST[activation]
        _share(lambda begin, end: kernels.set_activations(*arrays, begin, end, lowest, to), len(z))
    return out


def normalize_gradient(grad: Tensor, z: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    if not readable(grad, z):
        return unwrap(batch_norm.normalize_gradient)(grad, z, *given)
    mean, variance, weight, bias, eps, activation, window = given
    scale, shift = batch_norm.scale_and_shift(mean, variance, weight, bias, eps)
    between = {"binary": (-window, window), "relu": (_ABOVE_0, inf), "identity": (-inf, inf)}[activation]
    arrays = flat(grad), flat(z), z.shape[1], flat(scale), flat(shift), flat(mean)
    totals, products = _of_chunks(z)
    sums = totals.reshape(-1), products.reshape(-1)
    _share(lambda begin, end: kernels.chunk_sums(*arrays, begin, end, *between, *sums), len(z))
    _, slope, offset, of_weight, of_bias = centering(totals, products, len(z), variance, weight, eps)
    out = torch.empty_like(z)
    rest, to = (flat(slope), flat(offset)), flat(out)
    _share(lambda begin, end: kernels.set_gradients(*arrays, *rest, begin, end, *between, to), len(z))
    return out, of_weight, of_bias


def centering(
    totals: np.ndarray, products: np.ndarray, rows: int, variance: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    """Returns the vectors of BatchNorm's gradient at z, g · scale − (z − mean) · slope − offset, for a batch of `rows` rows.

    Args:
        totals, products: parts of the sums Σ g and Σ g · (z − mean), [parts, channels].

    Returns:
        scale, slope, offset, and the gradients at BatchNorm's weight and at its bias: float32 [channels].
    """
    of_bias, product = (torch.from_numpy(parts.sum(0, dtype=np.float64)).float() for parts in (totals, products))
    inverse = 1 / (variance + eps).sqrt()
    scale, of_weight = inverse if weight is None else inverse * weight, inverse * product
    return scale, scale * inverse * of_weight / rows, scale * of_bias / rows, of_weight, of_bias


def flat(x: Tensor) -> np.ndarray:
    """Returns the numbers of a contiguous tensor as the kernels take them: a vector, with bfloat16 as uint16."""
    x = x.detach().view(-1)
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def readable(*tensors: Tensor) -> bool:
    """Returns True if the kernels can read tensors whose last dimension is the channels."""
    return all(x.shape[-1] % WIDTH == 0 and x.dtype in (torch.float32, torch.bfloat16) for x in tensors)


def _share(work: Callable[[int, int], None], rows: int) -> None:
    """Calls work(begin, end) for parts of range(rows), made of whole chunks, one part for each of torch's threads."""
    share_out(lambda first, last: work(first * CHUNK, min(rows, last * CHUNK)), -(-rows // CHUNK))


def _of_chunks(z: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns two empty arrays, float32 [chunks, channels]."""
    shape = -(-len(z) // CHUNK), z.shape[1]
    return np.empty(shape, np.float32), np.empty(shape, np.float32)
