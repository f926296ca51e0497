"""Triton's kernels of packed CNNs: convolutions on tensor cores in int8, with pooling and results, and averages of codes.

A layer takes two launches. `spread` writes the picture with its border, and the weights, as int8. `convolve` multiplies them as
matrices. A row of the left matrix stands for a position of the picture. The rows of a pooling window are neighbours, so a
program holds whole windows. Each pass of the loop reads the inputs of its positions directly from the picture, whose border
makes all addresses valid. Every sum is an integer, and exact.
"""

import triton
import triton.language as tl

from bnn_exp.bits.cuda.inference_kernels import popcount

_ROUNDS = tl.constexpr(1.5 * 2**23)  # a float32 below 2²² plus this number is rounded to a whole one, a half to the even one


@triton.jit
def _rounded(codes, levels):
    """Returns clamp(rint(codes), 0, levels), uint8, of float32."""
    codes = tl.minimum(tl.maximum(codes, 0.0), levels * 1.0)
    return ((codes + _ROUNDS) - _ROUNDS).to(tl.uint8)


@triton.jit
def _codes(sums, n, outputs, constants):
    """Returns the codes of sums, uint8 in the shape of `sums`."""
    bias, multiplier = tl.load(constants[0] + n, n < outputs, 0), tl.load(constants[1] + n, n < outputs, 0.0)
    return _rounded((sums + bias[None, :]).to(tl.float32) * multiplier[None, :], constants[2])


@triton.jit
def _limits(n, outputs, y, x, height, width, constants, SIZE: tl.constexpr, CLASSES: tl.constexpr):
    """Returns the thresholds of the outputs n at positions y and x of the picture, int32 [positions or 1, outputs].

    A threshold that no sum reaches counts as ±2³⁰, so the difference to a sum never overflows.
    """
    HALF: tl.constexpr = SIZE // 2
    at = constants[0] + n[None, :]
    if CLASSES:
        row = tl.minimum(y, HALF) + tl.maximum(y - (height - 1 - HALF), 0)
        column = tl.minimum(x, HALF) + tl.maximum(x - (width - 1 - HALF), 0)
        at += ((row * SIZE + column) * constants[2])[:, None]
    return tl.minimum(tl.maximum(tl.load(at, (n < outputs)[None, :], 1 << 30), -(1 << 30)), 1 << 30)


@triton.jit
def _lowered(n, outputs, packed, stride, inputs, ZERO: tl.constexpr):
    """Returns 128 · Σ w of the outputs n, int32 [outputs]: `spread` lowers codes by 128, so each sum lacks this number.

    The weights of an output are `inputs` bits in a row of `stride` bytes, which ends with zeros.
    """
    words, ones = packed.to(tl.pointer_type(tl.uint32)), tl.zeros((n.shape[0],), tl.int32)
    for begin in range(0, stride // 4, 16):
        at = words + n.to(tl.int64)[:, None] * (stride // 4) + (begin + tl.arange(0, 16))[None, :]
        ones += tl.sum(popcount(tl.load(at, (n < outputs)[:, None], 0)), 1)
    return 128 * ((1 - ZERO) * ones + ZERO * inputs)


@triton.jit(do_not_specialize=["batch", "of_picture"])
def spread(
    x,
    batch,
    height,
    width,
    channels,
    padding,
    picture,
    packed,
    stride,
    weights,
    of_picture,
    CODES: tl.constexpr,
    ZERO: tl.constexpr,
    SIZE: tl.constexpr,
    CELL: tl.constexpr,
    ROW: tl.constexpr,
    PLACES: tl.constexpr,
    CELLS: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Spreads the inputs and the weights of a convolution to int8, as `convolve` reads them.

    The first `of_picture` programs write the picture with its border, [batch, height + SIZE − 1, width + SIZE − 1, CELL]: codes
    minus 128, or bits as 0 and 1. The other programs write the weights, [outputs, SIZE, ROW]: 1 for a bit 1, ZERO for a bit 0,
    and 0 where there is no input.

    Args:
        x: codes if CODES, uint8 [batch, height, width, channels]; else packed bits, uint8 [batch, height, width, bytes].
        padding: uint8 [channels], the codes outside the picture. Read only if CODES: outside, bits are 0.
        packed: rows of weights, see `bnn_exp.bits.convolutions.to_rows`, `stride` bytes from each other.
    """
    HALF: tl.constexpr = SIZE // 2
    bytes_ = (channels + 7) // 8
    if tl.program_id(0) < of_picture:
        place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
        across, down = width + 2 * HALF, height + 2 * HALF
        h, v = place % across - HALF, place // across % down - HALF
        there = place < batch * down * across
        inside = (there & (h >= 0) & (h < width) & (v >= 0) & (v < height))[:, None]
        at = ((place // (down * across) * height + v).to(tl.int64) * width + h)[:, None]
        to, begin = place.to(tl.int64)[:, None] * CELL, tl.program_id(1) * CELLS
        if CODES:
            c = begin + tl.arange(0, CELLS)[None, :]
            codes = tl.load(x + at * channels + c, inside & (c < channels), 0)
            codes = tl.where(inside, codes, tl.load(padding + c, c < channels, 0)) ^ 128
            tl.store(picture + to + c, codes.to(tl.int8, bitcast=True), there[:, None] & (c < CELL))
        else:  # four bits at a time
            four = begin // 4 + tl.arange(0, CELLS // 4)[None, :]
            bits = tl.load(x + at * bytes_ + four // 2, inside & (four // 2 < bytes_), 0).to(tl.int32) >> (four % 2 * 4)
            words = ((bits & 15) * 0x00204081) & 0x01010101
            tl.store(picture.to(tl.pointer_type(tl.int32)) + to // 4 + four, words, there[:, None] & (four < CELL // 4))
    elif tl.program_id(1) == 0:
        PARTS: tl.constexpr = (SIZE * ROW + VALUES - 1) // VALUES
        part = tl.program_id(0) - of_picture
        n, k = (part // PARTS).to(tl.int64), part % PARTS * VALUES + tl.arange(0, VALUES)
        row, column, c = k // ROW, k % ROW // CELL, k % ROW % CELL
        if CODES:
            bit = row * ((SIZE * channels + 7) // 8 * 8) + column * channels + c
        else:
            bit = (row * SIZE + column) * (bytes_ * 8) + c
        exists = (column < SIZE) & (c < channels) & (row < SIZE)
        bits = tl.load(packed + n * stride + bit // 8, exists, 0).to(tl.int32) >> (bit % 8) & 1
        tl.store(weights + n * (SIZE * ROW) + k, tl.where(exists, bits * (1 - ZERO) + ZERO, 0).to(tl.int8), row < SIZE)


@triton.jit(do_not_specialize=["batch"])
def convolve(
    picture,
    batch,
    height,
    width,
    channels,
    weights,
    packed,
    stride,
    outputs,
    out,
    constants,
    CODES: tl.constexpr,
    ZERO: tl.constexpr,
    STEPS: tl.constexpr,
    CLASSES: tl.constexpr,
    SIZE: tl.constexpr,
    CELL: tl.constexpr,
    ROW: tl.constexpr,
    POOL: tl.constexpr,
    SPOTS: tl.constexpr,
    WINDOWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Convolves what `spread` has written, pools and finishes.

    A program computes the results of WINDOWS pooling windows and OUTPUTS outputs. Each window takes SPOTS rows of the product,
    a power of two. A pass of the loop reads INPUTS numbers of a row of the kernel: ROW is a multiple of INPUTS. A position
    reads beyond its last input, where the weights are 0; so the memory of the picture must be INPUTS · SIZE bytes longer.

    Args:
        packed: the same weights as rows of bits, `stride` bytes each, then zeros. Read only if CODES.
        out: uint8 [batch, height // POOL, width // POOL, bytes].
        constants: (thresholds, inverted, outputs of a class) if STEPS, see `bits_of_bits`; else (bias, multiplier, levels),
            see `codes_of_codes`.
        CLASSES: True if the thresholds depend on the border class.
    """
    HALF: tl.constexpr = SIZE // 2
    PARTS: tl.constexpr = ROW // INPUTS
    columns = tl.cdiv(outputs, OUTPUTS)  # one dimension of programs, since the second one ends at 65,535
    first, column = tl.program_id(0) // columns * WINDOWS, tl.program_id(0) % columns
    down, across = height // POOL, width // POOL
    windows = batch * down * across
    spot = tl.arange(0, WINDOWS * SPOTS) % SPOTS
    there = spot < POOL * POOL
    spot = tl.where(there, spot, 0)
    window = tl.minimum(first + tl.arange(0, WINDOWS * SPOTS) // SPOTS, windows - 1)
    place = window % (down * across)
    v, h = place // across * POOL + spot // POOL, place % across * POOL + spot % POOL
    row = (width + 2 * HALF) * CELL
    at = picture + (window // (down * across) * (height + 2 * HALF) + v).to(tl.int64) * row + h * CELL
    n = column * OUTPUTS + tl.arange(0, OUTPUTS)
    w_at = weights + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * (SIZE * ROW)
    i = tl.arange(0, INPUTS)[None, :]
    sums = tl.zeros((WINDOWS * SPOTS, OUTPUTS), tl.int32)
    if CODES:
        sums += _lowered(n, outputs, packed, stride, SIZE * SIZE * channels, ZERO)[None, :]
    if STEPS:
        sums -= _limits(n, outputs, v, h, height, width, constants, SIZE, CLASSES)
    for part in range(0, SIZE * PARTS):
        x = tl.load(at[:, None] + (part // PARTS * row + part % PARTS * INPUTS + i))
        w = tl.load(w_at + (part * INPUTS + i))
        sums = tl.dot(x, tl.trans(w), sums, out_dtype=tl.int32)
    window = first + tl.arange(0, WINDOWS)
    if STEPS:
        steps = ((sums >= 0) & there[:, None]).to(tl.int8)
        steps = tl.max(tl.reshape(steps, (WINDOWS, SPOTS, OUTPUTS)), 1).to(tl.int32)
        bits = tl.reshape(steps, (WINDOWS, OUTPUTS // 8, 8)) << tl.arange(0, 8)[None, None, :]
        b, bytes_ = column * (OUTPUTS // 8) + tl.arange(0, OUTPUTS // 8), (outputs + 7) // 8
        used = ((1 << tl.maximum(tl.minimum(outputs - 8 * b, 8), 0)) - 1).to(tl.uint8)
        results = (tl.sum(bits, 2).to(tl.uint8) ^ tl.load(constants[1] + b, b < bytes_, 0)[None, :]) & used[None, :]
    else:
        codes = tl.where(there[:, None], _codes(sums, n, outputs, constants), 0)
        b, bytes_, results = n, outputs, tl.max(tl.reshape(codes, (WINDOWS, SPOTS, OUTPUTS)), 1).to(tl.uint8)
    tl.store(
        out + window.to(tl.int64)[:, None] * bytes_ + b[None, :], results, (window < windows)[:, None] & (b < bytes_)[None, :]
    )


@triton.jit
def average(x, places, channels, multiplier, levels, out, PLACES: tl.constexpr, CELLS: tl.constexpr):
    """Writes the codes clamp(rint(Σ x · multiplier), 0, levels), uint8 [batch, channels], of codes [batch, places, channels].

    The sums are exact. A program computes CELLS channels of a picture.
    """
    c = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    at = x + tl.program_id(0).to(tl.int64) * places * channels + c[None, :]
    sums = tl.zeros((CELLS,), tl.int32)
    for begin in range(0, places, PLACES):
        place = (begin + tl.arange(0, PLACES))[:, None]
        sums += tl.sum(tl.load(at + place * channels, (place < places) & (c < channels)[None, :], 0).to(tl.int32), 0)
    codes = _rounded(sums.to(tl.float32) * tl.load(multiplier), levels)
    tl.store(out + tl.program_id(0).to(tl.int64) * channels + c, codes, c < channels)
