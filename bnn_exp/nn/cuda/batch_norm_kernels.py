"""Triton's kernels for BatchNorm with its activation; the definitions are in `bnn_exp.nn.batch_norm`.

z is [rows, channels]. A program computes a tile of ROWS rows and COLUMNS channels at a time. Sums over many rows are taken in
parts of `per` rows first, then over the parts, always in one order, so equal inputs give equal bits.
"""

import triton
import triton.language as tl


@triton.jit
def offsets(first, rows, channels, n, ROWS: tl.constexpr):
    """Returns the offsets of ROWS rows from row `first` on, in channels n, and a mask of the offsets that exist."""
    r = first + tl.arange(0, ROWS)
    return r[:, None].to(tl.int64) * channels + n[None, :], (r < rows)[:, None] & (n < channels)[None, :]


@triton.jit
def _scale_and_shift(mean, variance, weight, bias, eps, n, channels, AFFINE: tl.constexpr):
    """Returns 1/√(variance + eps), scale and shift of channels n."""
    inverse = 1 / tl.sqrt_rn(variance + eps)
    scale, shift = inverse, -mean * inverse
    if AFFINE:
        scale = inverse * tl.load(weight + n, n < channels, 0.0)
        shift = tl.load(bias + n, n < channels, 0.0) - mean * scale
    return inverse, scale, shift


@triton.jit
def activated(y, low, high, ACTIVATION: tl.constexpr):
    """Returns the activation of y."""
    if ACTIVATION == "relu":
        y = tl.where(y < 0, 0.0, y)  # NaN stays NaN
    if ACTIVATION == "binary":
        y = tl.where(y >= 0, high, low)
    return y


@triton.jit
def passing(g, y, window, ACTIVATION: tl.constexpr):
    """Returns the gradient at y from the gradient g at its activation."""
    if ACTIVATION == "relu":
        g = tl.where(y > 0, g, 0.0)
    if ACTIVATION == "binary":
        g = tl.where(tl.abs(y) <= window, g, 0.0)
    return g


@triton.jit
def _keep(mean, variance, rows, n, channels, running_mean, running_variance, batches, momentum, RUNNING: tl.constexpr):
    """Updates the running statistics of channels n. The first program counts the batch."""
    if RUNNING:
        here = n < channels
        before, spread = tl.load(running_mean + n, here, 0.0), tl.load(running_variance + n, here, 0.0)
        tl.store(running_mean + n, before + momentum * (mean - before), here)
        tl.store(running_variance + n, spread + momentum * (variance * (rows / (rows - 1)) - spread), here)
        if tl.program_id(0) == 0:
            tl.store(batches, tl.load(batches) + 1)


@triton.jit
def part_moments(z, rows, channels, per, means, squares, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Computes the mean of z and Σ (z − mean)² of every channel in each part of `per` rows, float32 [parts, channels].

    Sums are taken of z minus the mean of the part's first tile, so the result loses no digits where the mean is large.
    """
    begin, n = tl.program_id(0) * per, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.minimum(begin + per, rows)
    at, there = offsets(begin, end, channels, n, ROWS)
    near = tl.sum(tl.load(z + at, there, 0.0).to(tl.float32), 0) / tl.minimum(end - begin, ROWS)
    total, square = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(begin, end, ROWS):
        at, there = offsets(first, end, channels, n, ROWS)
        away = tl.where(there, tl.load(z + at, there, 0.0).to(tl.float32) - near[None, :], 0.0)
        total += away
        square += away * away
    away = tl.sum(total, 0) / (end - begin)
    place = tl.program_id(0).to(tl.int64) * channels + n
    tl.store(means + place, near + away, n < channels)
    tl.store(squares + place, tl.maximum(tl.sum(square, 0) - (end - begin) * away * away, 0.0), n < channels)


@triton.jit
def _of_parts(partial, parts, channels, n, PARTS: tl.constexpr):
    """Returns the partial results of all parts in channels n, float32 [PARTS, GROUP], 0 beyond the last part."""
    p = tl.arange(0, PARTS)
    return tl.load(partial + p[:, None] * channels + n[None, :], (p < parts)[:, None] & (n < channels)[None, :], 0.0)


@triton.jit
def combined_moments(
    means,
    squares,
    parts,
    rows,
    channels,
    per,
    mean,
    variance,
    running_mean,
    running_variance,
    batches,
    momentum,
    RUNNING: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Computes mean and variance of all rows from the results of `part_moments` (Chan et al. 1983, eq. 2.1)."""
    n = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    count = tl.maximum(tl.minimum(rows - tl.arange(0, PARTS) * per, per), 0).to(tl.float32)[:, None]
    of_parts = _of_parts(means, parts, channels, n, PARTS)
    center = tl.sum(of_parts * count, 0) / rows
    away = of_parts - center[None, :]
    spread = tl.sum(_of_parts(squares, parts, channels, n, PARTS) + count * away * away, 0) / rows
    tl.store(mean + n, center, n < channels)
    tl.store(variance + n, spread, n < channels)
    _keep(center, spread, rows, n, channels, running_mean, running_variance, batches, momentum, RUNNING)


@triton.jit
def elements(
    z,
    rows,
    channels,
    mean,
    variance,
    weight,
    bias,
    eps,
    low,
    high,
    out,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Computes the activation of y for one tile."""
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at, there = offsets(tl.program_id(0) * ROWS, rows, channels, n, ROWS)
    center, spread = tl.load(mean + n, n < channels, 0.0), tl.load(variance + n, n < channels, 0.0)
    _, scale, shift = _scale_and_shift(center, spread, weight, bias, eps, n, channels, AFFINE)
    y = tl.load(z + at, there, 0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    tl.store(out + at, activated(y, low, high, ACTIVATION).to(out.dtype.element_ty), there)


@triton.jit
def whole(
    z,
    rows,
    channels,
    mean,
    variance,
    weight,
    bias,
    eps,
    running_mean,
    running_variance,
    batches,
    momentum,
    low,
    high,
    out,
    RUNNING: tl.constexpr,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Computes mean, variance and the activation of y for all rows of COLUMNS channels, at most ROWS rows."""
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    at, there = offsets(0, rows, channels, n, ROWS)
    x = tl.load(z + at, there, 0.0).to(tl.float32)
    near = tl.sum(x, 0) / rows
    center = near + tl.sum(tl.where(there, x - near[None, :], 0.0), 0) / rows  # corrects the rounding of a large sum
    away = tl.where(there, x - center[None, :], 0.0)
    spread = tl.sum(away * away, 0) / rows
    tl.store(mean + n, center, n < channels)
    tl.store(variance + n, spread, n < channels)
    _keep(center, spread, rows, n, channels, running_mean, running_variance, batches, momentum, RUNNING)
    _, scale, shift = _scale_and_shift(center, spread, weight, bias, eps, n, channels, AFFINE)
    y = x * scale[None, :] + shift[None, :]
    tl.store(out + at, activated(y, low, high, ACTIVATION).to(out.dtype.element_ty), there)


@triton.jit
def _passing_at(z, grad, at, there, scale, shift, window, ACTIVATION: tl.constexpr):
    """Returns z and the gradient at y = z·scale + shift, both float32, at the offsets `at`; 0 beyond the mask `there`."""
    x = tl.load(z + at, there, 0.0).to(tl.float32)
    g = tl.load(grad + at, there, 0.0).to(tl.float32)
    return x, passing(g, x * scale[None, :] + shift[None, :], window, ACTIVATION)


@triton.jit
def part_sums(
    grad,
    z,
    rows,
    channels,
    per,
    mean,
    variance,
    weight,
    bias,
    eps,
    window,
    sums,
    products,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Computes Σ g and Σ g·(z − mean) of the gradient g at y, in each part of `per` rows: float32 [parts, channels]."""
    begin, n = tl.program_id(0) * per, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.minimum(begin + per, rows)
    center, spread = tl.load(mean + n, n < channels, 0.0), tl.load(variance + n, n < channels, 0.0)
    _, scale, shift = _scale_and_shift(center, spread, weight, bias, eps, n, channels, AFFINE)
    total, product = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(begin, end, ROWS):
        at, there = offsets(first, end, channels, n, ROWS)
        x, g = _passing_at(z, grad, at, there, scale, shift, window, ACTIVATION)
        total += g
        product += g * (x - center[None, :])
    place = tl.program_id(0).to(tl.int64) * channels + n
    tl.store(sums + place, tl.sum(total, 0), n < channels)
    tl.store(products + place, tl.sum(product, 0), n < channels)


@triton.jit
def combined_sums(
    sums,
    products,
    parts,
    channels,
    variance,
    eps,
    of_weight,
    of_bias,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Computes the gradients of BatchNorm's weight and bias from the results of `part_sums`."""
    n = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    inverse = 1 / tl.sqrt_rn(tl.load(variance + n, n < channels, 1.0) + eps)
    tl.store(of_weight + n, inverse * tl.sum(_of_parts(products, parts, channels, n, PARTS), 0), n < channels)
    tl.store(of_bias + n, tl.sum(_of_parts(sums, parts, channels, n, PARTS), 0), n < channels)


@triton.jit
def element_gradients(
    grad,
    z,
    rows,
    channels,
    mean,
    variance,
    weight,
    bias,
    eps,
    window,
    of_weight,
    of_bias,
    out,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Computes the gradient at z for one tile."""
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at, there = offsets(tl.program_id(0) * ROWS, rows, channels, n, ROWS)
    center, spread = tl.load(mean + n, n < channels, 0.0), tl.load(variance + n, n < channels, 0.0)
    inverse, scale, shift = _scale_and_shift(center, spread, weight, bias, eps, n, channels, AFFINE)
    slope = scale * inverse * tl.load(of_weight + n, n < channels, 0.0) / rows
    offset = scale * tl.load(of_bias + n, n < channels, 0.0) / rows
    x, g = _passing_at(z, grad, at, there, scale, shift, window, ACTIVATION)
    found = scale[None, :] * g - slope[None, :] * (x - center[None, :]) - offset[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), there)


@triton.jit
def whole_gradient(
    grad,
    z,
    rows,
    channels,
    mean,
    variance,
    weight,
    bias,
    eps,
    window,
    of_weight,
    of_bias,
    out,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Computes all gradients for all rows of COLUMNS channels, at most ROWS rows."""
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    at, there = offsets(0, rows, channels, n, ROWS)
    center, spread = tl.load(mean + n, n < channels, 0.0), tl.load(variance + n, n < channels, 0.0)
    inverse, scale, shift = _scale_and_shift(center, spread, weight, bias, eps, n, channels, AFFINE)
    x, g = _passing_at(z, grad, at, there, scale, shift, window, ACTIVATION)
    away = x - center[None, :]
    by_weight, by_bias = inverse * tl.sum(g * away, 0), tl.sum(g, 0)
    tl.store(of_weight + n, by_weight, n < channels)
    tl.store(of_bias + n, by_bias, n < channels)
    slope, offset = scale * inverse * by_weight / rows, scale * by_bias / rows
    found = scale[None, :] * g - slope[None, :] * away - offset[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), there)
