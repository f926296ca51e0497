"""Triton's kernels for an MLP of bits in training. They read and write every tensor as few times as possible.

The sums z of a layer, int16 or int32 [rows, width], stand for the numbers a·z; width is a multiple of COLUMNS. BatchNorm is
y = z·scale + shift. y is never stored: every kernel computes it again from z, for the bit 1[y ≥ 0] and for the window
|y| ≤ window in which a gradient passes. In columns that belong to no neuron, scale is 0 and shift −∞. Sums over the rows are
taken over blocks of ROWS rows first, then over the blocks, always in the same order. Vectors are float32 [width].
"""

import triton
import triton.language as tl

ROWS = COLUMNS = tl.constexpr(64)  # rows and columns of the block that one Triton program computes
BLOCKS = tl.constexpr(64)  # a sum over all rows adds the partial sums of 64 blocks of rows at a time
NEURONS = tl.constexpr(16)  # neurons for which one Triton program adds the partial sums of all blocks of rows


@triton.jit
def _block(rows, width):
    """Returns the rows and columns of this program's block, its offsets in a tensor, and a mask of the offsets that exist."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return r, n, r[:, None].to(tl.int64) * width + n[None, :], (r < rows)[:, None] & (n < width)[None, :]


@triton.jit
def unpack(packed, row, rows, columns, out, out_rows, width, zero):
    """Unpacks the first `columns` bits of packed rows, uint8 [rows, row], to their values, 1 and `zero`, [out_rows, width].

    The rest of `out` becomes 0.
    """
    r, n, _, there = _block(rows, columns)
    bytes_ = tl.load(packed + r[:, None].to(tl.int64) * row + (n // 8)[None, :], there, 0).to(tl.int32)
    bits = (bytes_ >> (n % 8)[None, :]) & 1
    values = tl.where(there, tl.where(bits == 1, 1.0, zero), 0.0).to(out.dtype.element_ty)
    inside = (r < out_rows)[:, None] & (n < width)[None, :]
    tl.store(out + r[:, None].to(tl.int64) * width + n[None, :], values, inside)


@triton.jit
def moments(z, rows, width, means, squares):
    """Computes the mean of z and Σ (z − mean)² of every column in each block of rows, float32 [blocks, width]."""
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
    """Returns the partial results of BLOCKS blocks, from block `first` on, in columns n: float32, 0 beyond the last block."""
    b = first + tl.arange(0, BLOCKS)
    return tl.load(partial + b[:, None] * width + n[None, :], (b < blocks)[:, None], 0.0)


@triton.jit
def _rows_of(first, rows):
    """Returns the number of rows in each of BLOCKS blocks, from block `first` on: float32 [BLOCKS, 1]."""
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
    """Computes a BatchNorm from the results of `moments`, and updates its running statistics.

    The means and squares of blocks become those of all rows (Chan et al. 1983, eq. 2.1). Outputs: `scale` and `shift`, the mean
    of z, and `inverse`, 1/√(variance + eps) of the numbers.
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
    """Computes the packed bits 1[y ≥ 0] of y = z·scale + shift, uint8 [rows, width / 8]."""
    r, n, at, there = _block(rows, width)
    y = tl.load(z + at, there, 0).to(tl.float32) * tl.load(scale + n)[None, :] + tl.load(shift + n)[None, :]
    ones = (y >= 0).to(tl.int32) << (n % 8)[None, :]
    bytes_ = tl.sum(tl.reshape(ones, (ROWS, COLUMNS // 8, 8)), 2)
    j = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
    tl.store(bits + r[:, None].to(tl.int64) * (width // 8) + j[None, :], bytes_.to(tl.uint8), (r < rows)[:, None])


@triton.jit
def _passing(grad, z, at, there, n, scale, shift, mean, window):
    """Returns the gradient at y = z·scale + shift, set to 0 where |y| > window, and z − mean."""
    x = tl.load(z + at, there, 0).to(tl.float32)
    y = x * tl.load(scale + n)[None, :] + tl.load(shift + n)[None, :]
    g = tl.load(grad + at, there, 0.0)
    return tl.where(tl.abs(y) <= window, g, 0.0), x - tl.load(mean + n)[None, :]


@triton.jit
def total(grad, z, rows, width, scale, shift, mean, window, sums, products):
    """Computes Σ g and Σ g · (z − mean) of the gradient g inside the window, in each block of rows: float32 [blocks, width]."""
    _, n, at, there = _block(rows, width)
    g, away = _passing(grad, z, at, there, n, scale, shift, mean, window)
    place = tl.program_id(0) * width + n
    tl.store(sums + place, tl.sum(g, 0))
    tl.store(products + place, tl.sum(tl.where(there, g * away, 0.0), 0))


@triton.jit
def slopes(sums, products, rows, width, a, scale, inverse, slope, offset, of_weight, of_bias):
    """Turns the sums of `total` into `slope` and `offset` of `center`, and the gradients of BatchNorm's weight and bias."""
    n = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    blocks = tl.cdiv(rows, ROWS)
    g, product = tl.zeros((NEURONS,), tl.float32), tl.zeros((NEURONS,), tl.float32)
    for first in range(0, blocks, BLOCKS):
        g += tl.sum(_over_blocks(sums, first, blocks, width, n), 0)
        product += tl.sum(_over_blocks(products, first, blocks, width, n), 0)
    factor, steep = tl.load(scale + n) / a, tl.load(inverse + n) * a
    tl.store(slope + n, factor * steep * steep * product / rows)
    tl.store(offset + n, factor * g / rows)
    tl.store(of_weight + n, steep * product)
    tl.store(of_bias + n, g)


@triton.jit
def center(grad, z, rows, width, scale, shift, mean, window, a, slope, offset, out):
    """Computes BatchNorm's backward pass, from y to the numbers a·z, [rows, width] (Ioffe & Szegedy 2015, section 3)."""
    _, n, at, there = _block(rows, width)
    g, away = _passing(grad, z, at, there, n, scale, shift, mean, window)
    factor = tl.load(scale + n) / a
    found = factor[None, :] * g - tl.load(slope + n)[None, :] * away - tl.load(offset + n)[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), there)
