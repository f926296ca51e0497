"""Triton's kernels for BatchNorm and activation of an MLP of bits. They read and write every tensor as few times as possible.

The sums z of a layer, float16 or float32 [rows, width], stand for the numbers a·z; width is a multiple of 64. BatchNorm is
y = z·scale + shift. y is never stored: every kernel computes it again from z. In columns that belong to no neuron, scale is 0
and shift −∞. Vectors are float32 [width].

For up to `operations.FEW` rows, one kernel computes BatchNorm and activation: a program holds all rows of STRIPE columns in
registers. For more rows, kernels add up parts of TALL rows first, and then the parts, always in the same order. The sizes are
those that an H200 computes fastest.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.bits.cuda.codes import INTEGER, codes
from bnn_exp.bits.cuda.operations import vectors_of

ROWS = tl.constexpr(64)  # rows and columns of a block
COLUMNS = tl.constexpr(64)
TALL = tl.constexpr(256)  # rows that one program adds up, block by block
PARTS = tl.constexpr(64)  # a sum over all rows adds the sums of so many parts at a time, each of TALL rows
NEURONS = tl.constexpr(16)  # columns of a program that adds the sums of all parts
STRIPE = tl.constexpr(8)  # columns of a program that holds all rows


@triton.jit
def block(first, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Returns the rows of a block, from row `first` on, its columns, its offsets in a tensor, and a mask of real offsets."""
    r = first + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return r, n, r[:, None].to(tl.int64) * width + n[None, :], (r < rows)[:, None] & (n < width)[None, :]


@triton.jit
def _moments(x, there, count):
    """Returns the mean and Σ (x − mean)² of every column of a block with `count` rows. x is 0 beyond the mask `there`."""
    mean = tl.sum(x, 0) / count
    away = tl.where(there, x - mean[None, :], 0.0)
    return mean, tl.sum(away * away, 0)


@triton.jit
def _normalization(center, square, n, rows, neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked,
                   scale, shift, mean, inverse, AFFINE: tl.constexpr, RUNNING: tl.constexpr, program):  # fmt: skip
    """Computes a BatchNorm of columns n from the mean `center` of z and from Σ (z − mean)², and updates its statistics.

    Stores `scale`, `shift`, the `mean` of z, and `inverse`, a/√(variance + eps) of the numbers a·z. The first `program` adds 1
    to `tracked`, the number of batches. Returns scale and shift.
    """
    real = n < neurons
    variance = square / rows * a * a
    one_over = a / tl.sqrt_rn(variance + eps)
    factor, beta = one_over, tl.zeros_like(center)
    if AFFINE:
        factor, beta = tl.load(weight + n, real, 0.0) * one_over, tl.load(bias + n, real, 0.0)
    factor = tl.where(real, factor, 0.0)
    offset = tl.where(real, beta - center * factor, -float("inf"))
    tl.store(scale + n, factor)
    tl.store(shift + n, offset)
    tl.store(mean + n, center)
    tl.store(inverse + n, one_over)
    if RUNNING:
        before, spread = tl.load(running_mean + n, real, 0.0), tl.load(running_var + n, real, 0.0)
        tl.store(running_mean + n, before + momentum * (center * a - before), real)
        tl.store(running_var + n, spread + momentum * (variance * (rows / (rows - 1)) - spread), real)
        tl.store(tracked, tl.load(tracked) + 1, program == 0)
    return factor, offset


@triton.jit
def store_values(values, at, there, y, zero, one):
    """Stores the code of each bit 1[y ≥ 0] at `values`: the code `zero` for a bit 0, and the code `one` for a bit 1."""
    tl.store(values + at, tl.where(y >= 0, one, zero).to(values.dtype.element_ty), there)


@triton.jit
def moments_kernel(z, rows, width, means, squares):
    """Computes the mean of z and Σ (z − mean)² of every column in each TALL rows, float32 [parts, width].

    Sums are taken of z minus the mean of the first block, so the result loses no digits where the mean is large.
    """
    begin = tl.program_id(0) * TALL
    end = tl.minimum(begin + TALL, rows)
    _, n, at, there = block(begin, end, width, ROWS, COLUMNS)
    near = tl.sum(tl.load(z + at, there, 0).to(tl.float32), 0) / tl.minimum(end - begin, ROWS)
    total, square = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(begin, end, ROWS):
        _, _, at, there = block(first, end, width, ROWS, COLUMNS)
        away = tl.where(there, tl.load(z + at, there, 0).to(tl.float32) - near[None, :], 0.0)
        total += away
        square += away * away
    away = tl.sum(total, 0) / (end - begin)
    place = tl.program_id(0) * width + n
    tl.store(means + place, near + away)
    tl.store(squares + place, tl.maximum(tl.sum(square, 0) - (end - begin) * away * away, 0.0))


@triton.jit
def over_parts(partial, first, parts, width, n):
    """Returns the partial results of PARTS parts, from part `first` on, in columns n: float32, 0 beyond the last part."""
    p = first + tl.arange(0, PARTS)
    return tl.load(partial + p[:, None] * width + n[None, :], (p < parts)[:, None], 0.0)


@triton.jit
def _rows_of(first, rows):
    """Returns the number of rows in each of PARTS parts, from part `first` on: float32 [PARTS, 1]."""
    before = (first + tl.arange(0, PARTS)) * TALL
    return tl.maximum(tl.minimum(rows - before, TALL), 0).to(tl.float32)[:, None]


@triton.jit
def normalize_kernel(means, squares, rows, width, neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked,
                     scale, shift, mean, inverse, AFFINE: tl.constexpr, RUNNING: tl.constexpr):  # fmt: skip
    """Computes a BatchNorm from the results of `moments_kernel`; see `_normalization`.

    The means and squares of parts are combined into the mean and variance of all rows (Chan et al. 1983, eq. 2.1).
    `AFFINE` is True for a BatchNorm with weight and bias, `RUNNING` for one with running statistics.
    """
    n, parts = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS), tl.cdiv(rows, TALL)
    total, square = tl.zeros((NEURONS,), tl.float32), tl.zeros((NEURONS,), tl.float32)
    for first in range(0, parts, PARTS):
        total += tl.sum(over_parts(means, first, parts, width, n) * _rows_of(first, rows), 0)
    center = total / rows
    for first in range(0, parts, PARTS):
        away = over_parts(means, first, parts, width, n) - center[None, :]
        square += tl.sum(over_parts(squares, first, parts, width, n) + _rows_of(first, rows) * away * away, 0)
    _normalization(center, square, n, rows, neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked,
                   scale, shift, mean, inverse, AFFINE, RUNNING, tl.program_id(0))  # fmt: skip


@triton.jit(do_not_specialize=["zero", "one"])
def activate_kernel(z, rows, width, scale, shift, values, zero, one):
    """Computes the values of the bits 1[y ≥ 0] of y = z·scale + shift, [rows, width]; see `store_values`."""
    _, n, at, there = block(tl.program_id(0) * ROWS, rows, width, ROWS, COLUMNS)
    y = tl.load(z + at, there, 0).to(tl.float32) * tl.load(scale + n)[None, :] + tl.load(shift + n)[None, :]
    store_values(values, at, there, y, zero, one)


@triton.jit(do_not_specialize=["zero", "one"])
def normalize_and_activate_kernel(z, width, rows, neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked,
                                  scale, shift, mean, inverse, values, zero, one,
                                  AFFINE: tl.constexpr, RUNNING: tl.constexpr, ALL: tl.constexpr):  # fmt: skip
    """Computes the BatchNorm and the activation of the sums z. One program holds all rows, at most ALL, of STRIPE columns."""
    _, n, at, there = block(0, rows, width, ALL, STRIPE)
    x = tl.load(z + at, there, 0).to(tl.float32)
    center, square = _moments(x, there, rows)
    factor, offset = _normalization(
        center, square, n, rows, neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked,
        scale, shift, mean, inverse, AFFINE, RUNNING, tl.program_id(1))  # fmt: skip
    store_values(values, at, there, x * factor[None, :] + offset[None, :], zero, one)


@triton.jit
def normalize_and_apply_kernel(z, width, rows, neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked,
                               scale, shift, mean, inverse, out,
                               AFFINE: tl.constexpr, RUNNING: tl.constexpr, ALL: tl.constexpr):  # fmt: skip
    """Computes the BatchNorm of the sums z, and its output y, [rows, neurons]; see `normalize_and_activate_kernel`."""
    r, n, at, there = block(0, rows, width, ALL, STRIPE)
    x = tl.load(z + at, there, 0).to(tl.float32)
    center, square = _moments(x, there, rows)
    factor, offset = _normalization(
        center, square, n, rows, neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked,
        scale, shift, mean, inverse, AFFINE, RUNNING, tl.program_id(1))  # fmt: skip
    place = r[:, None].to(tl.int64) * neurons + n[None, :]
    tl.store(out + place, x * factor[None, :] + offset[None, :], there & (n < neurons)[None, :])


def warps(rows: int, stripe: int) -> int:
    """Returns the number of warps of a program that holds all rows of `stripe` columns: four, or 64 numbers in a thread."""
    return max(4, triton.next_power_of_2(rows) * stripe // 2048)


def blocks_of_elements(z: Tensor) -> tuple[int, int]:
    """Returns the grid of a kernel that computes each element: the numbers of blocks of rows and of columns."""
    return triton.cdiv(z.shape[0], ROWS.value), triton.cdiv(z.shape[1], COLUMNS.value)


def parts_of(z: Tensor) -> tuple[int, int]:
    """Returns the grid of a kernel that adds up TALL rows in a program."""
    return triton.cdiv(z.shape[0], TALL.value), triton.cdiv(z.shape[1], COLUMNS.value)


def partial_sums(z: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two empty tensors for the sums over TALL rows of z each: float32 [parts, width]."""
    first, second = (z.new_empty(parts_of(z)[0], z.shape[1], dtype=torch.float32) for _ in range(2))
    return first, second


def norm_of_sums(z, a, neurons, eps, momentum, weight, bias, running_mean, running_var, tracked):
    """Returns a BatchNorm of z, by two kernels; see `bnn_exp.bits.cuda.operations.norm_of_sums`."""
    (rows, width), partial, vectors = z.shape, partial_sums(z), vectors_of(z)
    moments_kernel[parts_of(z)](z, rows, width, *partial)
    given = neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked
    flags = {"AFFINE": weight is not None, "RUNNING": running_mean is not None}
    normalize_kernel[(width // NEURONS.value,)](*partial, rows, width, *given, *vectors, **flags)
    return tuple(vectors)


def activated(z: Tensor, scale: Tensor, shift: Tensor, zero: float, dtype: torch.dtype) -> Tensor:
    """Returns the values of the bits 1[y ≥ 0], by one kernel; see `bnn_exp.bits.cuda.operations.activated`."""
    values = z.new_empty(z.shape, dtype=dtype)
    activate_kernel[blocks_of_elements(z)](z, *z.shape, scale, shift, *places_of(values, zero))
    return values


def places_of(values: Tensor, zero: float) -> tuple[Tensor, int, int]:
    """Returns `values` as integers, and the codes of `zero` and 1, as `store_values` takes them."""
    return values.view(INTEGER[values.itemsize]), *codes(values.dtype, zero)


def normalized_and_activated(z, a, neurons, eps, momentum, weight, bias, running_mean, running_var, tracked, zero, dtype):
    """Returns a BatchNorm, and the values of the bits 1[y ≥ 0], by one kernel.

    See `bnn_exp.bits.cuda.operations.normalized_and_activated`. z has at most `FEW` rows.
    """
    (rows, width), vectors, values = z.shape, vectors_of(z), z.new_empty(z.shape, dtype=dtype)
    given = neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked
    flags = _flags(weight, running_mean, rows)
    normalize_and_activate_kernel[(1, width // STRIPE.value)](
        z, width, rows, *given, *vectors, *places_of(values, zero), **flags, num_warps=warps(rows, STRIPE.value))  # fmt: skip
    return (*vectors, values)


def normalized(z, a, neurons, eps, momentum, weight, bias, running_mean, running_var, tracked):
    """Returns a BatchNorm and its output, by one kernel; see `bnn_exp.bits.cuda.operations.normalized`."""
    (rows, width), vectors = z.shape, vectors_of(z)
    out = z.new_empty(rows, neurons, dtype=torch.float32)
    given = neurons, a, eps, momentum, weight, bias, running_mean, running_var, tracked
    normalize_and_apply_kernel[(1, width // STRIPE.value)](
        z, width, rows, *given, *vectors, out, **_flags(weight, running_mean, rows),
        num_warps=warps(rows, STRIPE.value))  # fmt: skip
    return (*vectors, out)


def _flags(weight: Tensor | None, running_mean: Tensor | None, rows: int) -> dict[str, bool | int]:
    return {"AFFINE": weight is not None, "RUNNING": running_mean is not None, "ALL": triton.next_power_of_2(rows)}
