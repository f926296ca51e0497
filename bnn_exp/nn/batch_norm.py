"""BatchNorm and the activation that follows it, as operators on rows of channels, with kernels for a GPU and for a CPU.

BatchNorm is y = z·scale + shift with scale = weight / √(variance + eps) and shift = bias − mean·scale, the statistics taken
over the rows. y is not stored: the activation reads y at once, and a backward pass computes y again from z. z, [rows,
channels], is contiguous, float32 or bfloat16; vectors are float32 [channels]; all arithmetic is in float32.

A short batch (at most `FEW` rows) takes one kernel in each direction, because one program holds all rows of some channels.
A longer batch takes three: partial sums, their combination, and the elements. The activations are `identity`, `relu` and
`binary`: `high` where y ≥ 0, else `low`, with a gradient that passes where |y| ≤ window.
"""

from typing import Any

import torch
from torch import Tensor

from bnn_exp.nn.operators import operator

LOWEST = {"relu": 0.0, "identity": -torch.inf}  # these activations of y are max(y, lowest)
FEW = 1024  # the most rows that one program of a kernel holds
_KERNELS, _COMPILED = "bnn_exp.nn.cuda.batch_norm:", "bnn_exp.bits.cpu.channels:"
AFFINE = "Tensor? weight, Tensor? bias, float eps"
_RUNNING = "Tensor(a!)? running_mean, Tensor(b!)? running_variance, Tensor(c!)? batches, float momentum"
_ACTIVATION = "str activation, float low, float high, ScalarType dtype"


def activated(y: Tensor, activation: str, low: float, high: float) -> Tensor:
    """Returns the activation of y."""
    if activation == "binary":
        return torch.where(y >= 0, high, low)
    return y.relu() if activation == "relu" else y


def passing(grad: Tensor, y: Tensor, activation: str, window: float) -> Tensor:
    """Returns the gradient at y from the gradient `grad` at its activation."""
    if activation == "identity":
        return grad
    return torch.where(y.abs() <= window if activation == "binary" else y > 0, grad, 0)


def _vectors(z: Tensor, count: int) -> tuple[Tensor, ...]:
    """Returns `count` empty vectors, float32 [channels]."""
    return tuple(z.new_empty(z.shape[1], dtype=torch.float32) for _ in range(count))


@operator(
    f"(Tensor z, {_RUNNING}) -> (Tensor mean, Tensor variance)",
    kernels=f"{_KERNELS}batch_statistics",
    cpu=f"{_COMPILED}batch_statistics",
    launches=2,
    fake=lambda z, *_: _vectors(z, 2),
)
def batch_statistics(
    z: Tensor, running_mean: Tensor | None, running_variance: Tensor | None, batches: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    """Returns the mean and the biased variance of each channel, and updates the running statistics.

    Args:
        z: [rows, channels], at least two rows.
        batches: the number of batches so far, an int64 scalar. This number and the running statistics may be None.
    """
    x = z.float()
    moments = x.mean(0), x.var(0, correction=0)
    update_running(*moments, len(z), running_mean, running_variance, batches, momentum)
    return moments


def update_running(
    mean: Tensor,
    variance: Tensor,
    rows: int,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    batches: Tensor | None,
    momentum: float,
) -> None:
    """Updates the running statistics by the statistics of a batch of `rows` rows."""
    if running_mean is not None and running_variance is not None:
        running_mean.lerp_(mean, momentum)
        running_variance.lerp_(variance * (rows / (rows - 1)), momentum)
    if batches is not None:
        batches.add_(1)


@operator(
    f"(Tensor z, Tensor mean, Tensor variance, {AFFINE}, {_ACTIVATION}) -> Tensor",
    kernels=f"{_KERNELS}normalize",
    cpu=f"{_COMPILED}normalize",
    launches=1,
    fake=lambda z, *given: torch.empty_like(z, dtype=given[-1]),
)
def normalize(
    z: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> Tensor:
    """Returns the activation of BatchNorm's output y, `dtype` [rows, channels]."""
    return activated(_output(z, mean, variance, weight, bias, eps), activation, low, high).to(dtype)


@operator(
    f"(Tensor z, {_RUNNING}, {AFFINE}, {_ACTIVATION}) -> (Tensor, Tensor mean, Tensor variance)",
    kernels=f"{_KERNELS}normalize_few",
    launches=1,
    fake=lambda z, *given: (torch.empty_like(z, dtype=given[-1]), *_vectors(z, 2)),
)
def normalize_few(
    z: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    batches: Tensor | None,
    momentum: float,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the results of `normalize` and of `batch_statistics`, for 2 to `FEW` rows."""
    mean, variance = batch_statistics(z, running_mean, running_variance, batches, momentum)
    return normalize(z, mean, variance, weight, bias, eps, activation, low, high, dtype), mean, variance


def _output(z: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Returns y, float32 [rows, channels]."""
    inverse = 1 / (variance + eps).sqrt()
    scale = inverse if weight is None else inverse * weight
    return z * scale + ((0 if bias is None else bias) - mean * scale)


_OF_GRADIENT = f"(Tensor grad, Tensor z, Tensor mean, Tensor variance, {AFFINE}, str activation, float window)"


def _like_gradient(grad: Tensor, z: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(z), *_vectors(z, 2)


@operator(
    f"{_OF_GRADIENT} -> (Tensor, Tensor of_weight, Tensor of_bias)",
    kernels=f"{_KERNELS}normalize_gradient",
    cpu=f"{_COMPILED}normalize_gradient",
    launches=3,
    fake=_like_gradient,
)
def normalize_gradient(
    grad: Tensor,
    z: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    window: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients at z (in z's dtype), at BatchNorm's weight and at its bias (Ioffe & Szegedy 2015, section 3).

    Args:
        grad: the gradient at the activation's output, [rows, channels].
        mean, variance: the statistics of the batch z.
        window: the gradient of a binary activation passes where |y| ≤ window.
    """
    g = passing(grad.float(), _output(z, mean, variance, weight, bias, eps), activation, window)
    away, inverse = z.float() - mean, 1 / (variance + eps).sqrt()
    of_weight, of_bias = inverse * (g * away).sum(0), g.sum(0)
    scale = inverse if weight is None else inverse * weight
    at_z = scale * g - scale * inverse * of_weight / len(z) * away - scale * of_bias / len(z)
    return at_z.to(z.dtype), of_weight, of_bias


@operator(
    f"{_OF_GRADIENT} -> (Tensor, Tensor of_weight, Tensor of_bias)",
    kernels=f"{_KERNELS}normalize_few_gradient",
    launches=1,
    fake=_like_gradient,
)
def normalize_few_gradient(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the results of `normalize_gradient`, for at most `FEW` rows."""
    return normalize_gradient(*given)
