"""Triton kernels of an MLP of bits in training, of which every tensor is read and written as few times as can be.

The sums z of a layer, int16 or int32 [rows, width], width a multiple of COLUMNS, stand for the numbers a·z. BatchNorm takes
them to y = z·scale + shift, which is never stored: the bit 1[y ≥ 0], and whether a gradient passes, |y| ≤ window, follow from z
again. In columns that are no neurons scale is 0 and shift −∞. Sums over the rows are taken by blocks of ROWS of them, then over
the blocks, always in the same order. Vectors are float32 [width].
"""

import triton
import triton.language as tl

ROWS = COLUMNS = tl.constexpr(64)  # of the block that a program takes
BLOCKS = tl.constexpr(64)  # of ROWS rows, at a time
NEURONS = tl.constexpr(16)  # of a program that sums over blocks


@triton.jit
def _block(rows, width):
    """The rows and columns of this program's block, its places in a tensor, and which of them there are."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return r, n, r[:, None].to(tl.int64) * width + n[None, :], (r < rows)[:, None] & (n < width)[None, :]


@triton.jit
def unpack(packed, row, rows, columns, out, out_rows, width, zero):
    """Packed bits, uint8 [rows, row bytes] → the values 1 and `zero` of `columns` of them [out_rows, width], the rest 0."""
    r, n, _, there = _block(rows, columns)
    bytes_ = tl.load(packed + r[:, None].to(tl.int64) * row + (n // 8)[None, :], there, 0).to(tl.int32)
    bits = (bytes_ >> (n % 8)[None, :]) & 1
    values = tl.where(there, tl.where(bits == 1, 1.0, zero), 0.0).to(out.dtype.element_ty)
    inside = (r < out_rows)[:, None] & (n < width)[None, :]
    tl.store(out + r[:, None].to(tl.int64) * width + n[None, :], values, inside)


@triton.jit
def moments(z, rows, width, means, squares):
    """Of each block the mean of z in every column, and Σ (z − mean)²: float32 [blocks, width]."""
    _, n, at, there = _block(rows, width)
    x = tl.load(z + at, there, 0).to(tl.float32)
    count = tl.minimum(rows - tl.program_id(0) * ROWS, ROWS).to(tl.float32)
    mean = tl.sum(x, 0) / count
    away = tl.where(there, x - mean[None, :], 0.0)
    place = tl.program_id(0) * width + n
    tl.store(means + place, mean)
    tl.store(squares + place, tl.sum(away * away, 0))


@triton.jit
def _over_blocks(partial, first, blocks, width, n):
    """The blocks from `first` on of columns n, float32 [BLOCKS, NEURONS], 0 where there are none."""
    b = first + tl.arange(0, BLOCKS)
    return tl.load(partial + b[:, None] * width + n[None, :], (b < blocks)[:, None], 0.0)


@triton.jit
def _rows_of(first, rows):
    """How many rows those blocks have, float32 [BLOCKS, 1]."""
    before = (first + tl.arange(0, BLOCKS)) * ROWS
    return tl.maximum(tl.minimum(rows - before, ROWS), 0).to(tl.float32)[:, None]


@triton.jit
def normalize(
    means,
    squares,
    rows,
    width,
    neurons,
    a,
    eps,
    momentum,
    weight,
    bias,
    running_mean,
    running_variance,
    scale,
    shift,
    mean,
    inverse,
    AFFINE: tl.constexpr,
    RUNNING: tl.constexpr,
):
    """What `moments` gave → BatchNorm of the numbers: scale and shift, the mean of z and 1/√(variance + eps) of the numbers.

    Means and squares of blocks become those of all rows (Chan et al. 1983, eq. 2.1). Running statistics go on.
    """
    n = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    real, blocks = n < neurons, tl.cdiv(rows, ROWS)
    total, square = tl.zeros((NEURONS,), tl.float32), tl.zeros((NEURONS,), tl.float32)
    for first in range(0, blocks, BLOCKS):
        total += tl.sum(_over_blocks(means, first, blocks, width, n) * _rows_of(first, rows), 0)
    center = total / rows
    for first in range(0, blocks, BLOCKS):
        away = _over_blocks(means, first, blocks, width, n) - center[None, :]
        square += tl.sum(_over_blocks(squares, first, blocks, width, n) + _rows_of(first, rows) * away * away, 0)
    variance = square / rows * a * a
    one_over = 1 / tl.sqrt_rn(variance + eps)
    gamma, beta = tl.full((NEURONS,), 1.0, tl.float32), tl.zeros((NEURONS,), tl.float32)
    if AFFINE:
        gamma, beta = tl.load(weight + n, real, 0.0), tl.load(bias + n, real, 0.0)
    factor = tl.where(real, gamma * one_over * a, 0.0)
    tl.store(scale + n, factor)
    tl.store(shift + n, tl.where(real, beta - center * factor, -float("inf")))
    tl.store(mean + n, center)
    tl.store(inverse + n, one_over)
    if RUNNING:
        before, spread = tl.load(running_mean + n, real, 0.0), tl.load(running_variance + n, real, 0.0)
        tl.store(running_mean + n, before + momentum * (center * a - before), real)
        tl.store(running_variance + n, spread + momentum * (variance * (rows / (rows - 1)) - spread), real)


@triton.jit
def activate(z, rows, width, scale, shift, bits):
    """The bits 1[y ≥ 0], packed: uint8 [rows, width / 8]."""
    r, n, at, there = _block(rows, width)
    y = tl.load(z + at, there, 0).to(tl.float32) * tl.load(scale + n)[None, :] + tl.load(shift + n)[None, :]
    ones = (y >= 0).to(tl.int32) << (n % 8)[None, :]
    bytes_ = tl.sum(tl.reshape(ones, (ROWS, COLUMNS // 8, 8)), 2)
    j = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
    tl.store(bits + r[:, None].to(tl.int64) * (width // 8) + j[None, :], bytes_.to(tl.uint8), (r < rows)[:, None])


@triton.jit
def _passing(errors, z, at, there, n, scale, shift, mean, window):
    """The errors at y that pass the activation, others 0, and z − mean."""
    x = tl.load(z + at, there, 0).to(tl.float32)
    y = x * tl.load(scale + n)[None, :] + tl.load(shift + n)[None, :]
    error = tl.load(errors + at, there, 0.0)
    return tl.where(tl.abs(y) <= window, error, 0.0), x - tl.load(mean + n)[None, :]


@triton.jit
def total(errors, z, rows, width, scale, shift, mean, window, sums, products):
    """Of each block Σ error and Σ error · (z − mean) of the errors that pass: float32 [blocks, width]."""
    _, n, at, there = _block(rows, width)
    error, away = _passing(errors, z, at, there, n, scale, shift, mean, window)
    place = tl.program_id(0) * width + n
    tl.store(sums + place, tl.sum(error, 0))
    tl.store(products + place, tl.sum(tl.where(there, error * away, 0.0), 0))


@triton.jit
def slopes(sums, products, rows, width, a, scale, inverse, slope, offset, of_weight, of_bias):
    """What `total` gave → the `slope` and `offset` of `center`, and the gradients of BatchNorm's weight and bias."""
    n = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    blocks = tl.cdiv(rows, ROWS)
    error, product = tl.zeros((NEURONS,), tl.float32), tl.zeros((NEURONS,), tl.float32)
    for first in range(0, blocks, BLOCKS):
        error += tl.sum(_over_blocks(sums, first, blocks, width, n), 0)
        product += tl.sum(_over_blocks(products, first, blocks, width, n), 0)
    factor, steep = tl.load(scale + n) / a, tl.load(inverse + n) * a
    tl.store(slope + n, factor * steep * steep * product / rows)
    tl.store(offset + n, factor * error / rows)
    tl.store(of_weight + n, steep * product)
    tl.store(of_bias + n, error)


@triton.jit
def center(errors, z, rows, width, scale, shift, mean, window, a, slope, offset, out):
    """BatchNorm backwards (Ioffe & Szegedy 2015, section 3): errors at y → errors at the numbers [rows, width]."""
    _, n, at, there = _block(rows, width)
    error, away = _passing(errors, z, at, there, n, scale, shift, mean, window)
    factor = tl.load(scale + n) / a
    found = factor[None, :] * error - tl.load(slope + n)[None, :] * away - tl.load(offset + n)[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), there)
