"""The operations of a training step on packed bits, each defined in plain torch. On a GPU each has kernels in this folder.

z are the sums of a layer, float16 or float32 [rows, width], which stand for the numbers a·z. BatchNorm is y = z·scale + shift.
In columns that belong to no neuron, scale is 0 and shift −∞. Vectors are float32 [width].
"""

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.nn.operators import operator

FEW = 1024  # the most rows that one Triton program keeps in registers: then one kernel computes BatchNorm and activation
_FOLDER = "bnn_exp.bits.cuda"
_NORM = (
    "Tensor z, float a, int neurons, float eps, float momentum, Tensor? weight, Tensor? bias, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? tracked"
)
_GRADIENT = "Tensor grad, Tensor z, Tensor scale, Tensor shift, Tensor mean"
_FOUR = "(Tensor, Tensor, Tensor, Tensor)"


def vectors_of(z: Tensor, count: int = 4) -> list[Tensor]:
    """Returns `count` empty vectors, float32 [width]."""
    return [z.new_empty(z.shape[1], dtype=torch.float32) for _ in range(count)]


@operator(
    "(Tensor packed, int columns, float zero, int rows, int width, ScalarType dtype) -> Tensor",
    kernels=f"{_FOLDER}.values:values_of_bits",
    launches=1,
    fake=lambda packed, columns, zero, rows, width, dtype: packed.new_empty(rows, width, dtype=dtype),
)
def values_of_bits(packed: Tensor, columns: int, zero: float, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Returns the values of the first `columns` bits of packed rows, and 0 in the rest of [rows, width].

    Args:
        packed: uint8 [≤ rows, ≥ columns / 8].
        zero: the value of a bit 0: 0 or −1. The value of a bit 1 is 1.
        width: a multiple of 8.
        dtype: float8_e4m3fn, float16, bfloat16 or float32.
    """
    values = torch.where(reference.unpacked(packed, torch.bool)[:, :columns], 1.0, zero)
    return F.pad(values, (0, width - values.shape[1], 0, rows - len(values))).to(dtype)


@operator(
    "(Tensor a, Tensor v, ScalarType dtype) -> Tensor",
    kernels=f"{_FOLDER}.products:exact_product",
    launches=1,
    fake=lambda a, v, dtype: a.new_empty(len(a), len(v), dtype=dtype),
)
def exact_product(a: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a vᵀ of whole numbers a [rows, inputs] and v [width, inputs] of one dtype, exactly.

    `bnn_exp.bits.cuda.products` chooses dtypes that make all sums exact.
    """
    with torch.autocast(a.device.type, enabled=False):  # autocast would round the operands
        return (a.float() @ v.float().t()).to(dtype)


@operator(f"({_NORM}) -> {_FOUR}", kernels=f"{_FOLDER}.batch_norm:norm_of_sums", launches=2, fake=lambda z, *_: vectors_of(z))
def norm_of_sums(
    z: Tensor,
    a: float,
    neurons: int,
    eps: float,
    momentum: float,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    tracked: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the BatchNorm of a batch in training: `scale`, `shift`, the `mean` of z, and `inverse`, a/σ of the numbers a·z.

    Updates the running statistics, float32 [neurons], and adds 1 to `tracked`, an int64 scalar, where they are given.
    """
    x, rows = z.float(), len(z)
    mean = x.mean(0)
    variance = (x - mean).square().mean(0) * a * a
    inverse = a * (variance + eps).rsqrt()
    fill = (0, len(mean) - neurons)
    gamma = torch.ones_like(mean) if weight is None else F.pad(weight.detach(), fill)
    beta = torch.zeros_like(mean) if bias is None else F.pad(bias.detach(), fill)
    real = torch.arange(len(mean), device=z.device) < neurons
    scale = torch.where(real, gamma * inverse, 0.0)
    if running_mean is not None and running_var is not None and tracked is not None:
        running_mean.lerp_(mean[:neurons] * a, momentum)
        running_var.lerp_(variance[:neurons] * (rows / (rows - 1)), momentum)
        tracked.add_(1)
    return scale, torch.where(real, beta - mean * scale, -inf), mean, inverse


@operator(
    "(Tensor z, Tensor scale, Tensor shift, float zero, ScalarType dtype) -> Tensor",
    kernels=f"{_FOLDER}.batch_norm:activated",
    launches=1,
    fake=lambda z, scale, shift, zero, dtype: z.new_empty(z.shape, dtype=dtype),
)
def activated(z: Tensor, scale: Tensor, shift: Tensor, zero: float, dtype: torch.dtype) -> Tensor:
    """Returns the values of the bits 1[y ≥ 0], 1 and `zero`, as `dtype` [rows, width]."""
    return torch.where(z.float() * scale + shift >= 0, 1.0, zero).to(dtype)


@operator(
    f"({_NORM}, float zero, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernels=f"{_FOLDER}.batch_norm:normalized_and_activated",
    launches=1,
    fake=lambda z, *given: (*vectors_of(z), z.new_empty(z.shape, dtype=given[-1])),
)
def normalized_and_activated(z: Tensor, *given: Tensor | float | torch.dtype) -> tuple[Tensor, ...]:
    """Returns the results of `norm_of_sums` and of `activated`, by one kernel, for at most `FEW` rows.

    `given` are the arguments of `norm_of_sums` after z, then `zero` and `dtype` of `activated`.
    """
    *of_norm, zero, dtype = given
    scale, shift, *rest = norm_of_sums(z, *of_norm)
    return scale, shift, *rest, activated(z, scale, shift, zero, dtype)


@operator(
    f"({_NORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernels=f"{_FOLDER}.batch_norm:normalized",
    launches=1,
    fake=lambda z, a, neurons, *_: (*vectors_of(z), z.new_empty(len(z), neurons, dtype=torch.float32)),
)
def normalized(z: Tensor, a: float, neurons: int, *given: Tensor | float | None) -> tuple[Tensor, ...]:
    """Returns the results of `norm_of_sums`, and y, float32 [rows, neurons], by one kernel, for at most `FEW` rows."""
    scale, shift, *rest = norm_of_sums(z, a, neurons, *given)
    return scale, shift, *rest, (z.float() * scale + shift)[:, :neurons].contiguous()


@operator(
    f"({_GRADIENT}, Tensor inverse, float window) -> {_FOUR}",
    kernels=f"{_FOLDER}.batch_norm_backward:slopes_of_gradient",
    launches=2,
    fake=lambda grad, z, *_: vectors_of(z),
)
def slopes_of_gradient(
    grad: Tensor, z: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor, window: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns `slope` and `offset` for `centered_gradient`, and the gradients of BatchNorm's weight and bias.

    Args:
        grad: the gradient at the activation, [rows, ≤ width]; 0 in the other columns. This gradient passes where |y| ≤ window.
    """
    g = _passing(grad, z, scale, shift, window)
    total, product, rows = g.sum(0), (g * (z.float() - mean)).sum(0), len(z)
    return scale * inverse * inverse * product / rows, scale * total / rows, inverse * product, total


@operator(
    f"({_GRADIENT}, float window, Tensor slope, Tensor offset, float zero, ScalarType dtype) -> (Tensor, Tensor)",
    kernels=f"{_FOLDER}.batch_norm_backward:centered_gradient",
    launches=1,
    fake=lambda grad, z, *given: [z.new_empty(z.shape, dtype=given[-1]) for _ in range(2)],
)
def centered_gradient(
    grad: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    window: float,
    slope: Tensor,
    offset: Tensor,
    zero: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Returns the gradient at z (Ioffe & Szegedy 2015, section 3), and the results of `activated`; both `dtype` [rows, width].

    `slopes_of_gradient` explains the arguments.
    """
    at_z = (scale * _passing(grad, z, scale, shift, window) - slope * (z.float() - mean) - offset).to(dtype)
    return at_z, activated(z, scale, shift, zero, dtype)


@operator(
    f"({_GRADIENT}, Tensor inverse, float window, float zero, ScalarType dtype) -> {_FOUR}",
    kernels=f"{_FOLDER}.batch_norm_backward:gradient_at_sums",
    launches=1,
    fake=lambda grad, z, *given: (*(z.new_empty(z.shape, dtype=given[-1]) for _ in range(2)), *vectors_of(z, 2)),
)
def gradient_at_sums(
    grad: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    inverse: Tensor,
    window: float,
    zero: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the results of `centered_gradient`, and the gradients of BatchNorm's weight and bias.

    One kernel computes all results, for at most `FEW` rows.
    """
    slope, offset, of_weight, of_bias = slopes_of_gradient(grad, z, scale, shift, mean, inverse, window)
    return *centered_gradient(grad, z, scale, shift, mean, window, slope, offset, zero, dtype), of_weight, of_bias


def _passing(grad: Tensor, z: Tensor, scale: Tensor, shift: Tensor, window: float) -> Tensor:
    g = F.pad(grad.float(), (0, z.shape[1] - grad.shape[1]))
    return torch.where((z.float() * scale + shift).abs() <= window, g, 0.0)
