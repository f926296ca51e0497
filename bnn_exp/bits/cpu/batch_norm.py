"""BatchNorm and the binary activation of a layer of bits in training, on a CPU, by numba.

What a layer's product gives are the sums `z`, int16 or float32 [rows, width], width a multiple of 64; a sum is the number
a·z + c[neuron], exact in float32, and the activation's argument is y = (a·z + c)·scale + shift, multiplied and added in one
rounding as torch's batch_norm does on a processor that can. So y is never stored, and what follows from it (the bit, whether
the gradient passes) is found again where it is needed. Vectors are float32 [width].

Functions take some rows or some columns of all, for threads to share; what they write does not depend on how.
"""

import numpy as np
from numba import njit

from bnn_exp.bits.cpu.backward_kernels import (
    WIDTH,
    all_of,
    floats_at,
    minus,
    over,
    plus,
    set_floats,
    set_not_negative,
    shorts_at,
    times_plus,
    transpose_bytes,
    transpose_floats,
    zeros,
)
from bnn_exp.bits.cpu.kernels import LANES, byte_at, ones, set_planes

CHUNK = 256  # rows of errors whose float32 sums are taken one after the other


def _compiled(function):
    """`function` by numba, a·b + c in one rounding where the processor can, and kept where it may be written."""
    try:
        return njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")(function)
    except RuntimeError:
        return njit(nogil=True, fastmath={"contract"}, error_model="numpy")(function)


@_compiled
def _number(z, short, a, c):
    """Sixteen numbers a·z + c from address `z` on."""
    return times_plus(shorts_at(z) if short else floats_at(z), a, c)


@_compiled
def moments(z, a, c, first, last, mean, squares):
    """The mean of columns `first` to `last`, and Σ (number − mean)²: row after row in float32, as torch does by one thread."""
    rows, row, short = len(z), z.shape[1] * z.itemsize, z.itemsize == 2
    start, shifts, means, sums = np.intp(z.ctypes.data), c.ctypes.data, mean.ctypes.data, squares.ctypes.data
    a, count, step = all_of(a), all_of(np.float32(rows)), WIDTH * z.itemsize
    for n in range(first, last, 2 * WIDTH):
        begin, at, to, out = start + n * z.itemsize, np.intp(shifts + 4 * n), np.intp(means + 4 * n), np.intp(sums + 4 * n)
        c, d = floats_at(at), floats_at(at + 64)
        p, q = zeros(), zeros()
        for r in range(rows):
            p = plus(p, _number(begin + r * row, short, a, c))
            q = plus(q, _number(begin + r * row + step, short, a, d))
        p, q = over(p, count), over(q, count)
        set_floats(to, p)
        set_floats(to + 64, q)
        x, y = zeros(), zeros()
        for r in range(rows):
            e, f = minus(_number(begin + r * row, short, a, c), p), minus(_number(begin + r * row + step, short, a, d), q)
            x, y = times_plus(e, e, x), times_plus(f, f, y)
        set_floats(out, x)
        set_floats(out + 64, y)


@_compiled
def normalized(z, a, c, scale, shift, begin, end, y):
    """y of rows `begin` to `end` → float32 [rows, width]."""
    for r in range(begin, end):
        for n in range(z.shape[1]):
            y[r, n] = (a * np.float32(z[r, n]) + c[n]) * scale[n] + shift[n]


@_compiled
def activations(z, a, c, scale, shift, begin, end, bits):
    """The bits 1[y ≥ 0] of rows `begin` to `end` → uint8 [rows, width / 8]."""
    y = np.empty(z.shape[1], np.float32)
    at, to, row = np.intp(y.ctypes.data), np.intp(bits.ctypes.data), np.intp(bits.shape[1])
    for r in range(begin, end):
        for n in range(z.shape[1]):
            y[n] = (a * np.float32(z[r, n]) + c[n]) * scale[n] + shift[n]
        for n in range(0, z.shape[1], WIDTH):
            set_not_negative(to + r * row + n // 8, floats_at(at + 4 * n))


@_compiled
def pass_on(g, z, a, c, scale, shift, mean, window, begin, end, totals, products):
    """In rows `begin` to `end` of errors float32 [rows, width], whole chunks, set those to 0 where |y| > window; Σ error and
    Σ error · (number − mean) of what is left in each chunk go to `totals` and `products`, [chunks, width]."""
    for first in range(begin, end, CHUNK):
        total, product = totals[first // CHUNK], products[first // CHUNK]
        total[:] = 0
        product[:] = 0
        for r in range(first, min(first + CHUNK, end)):
            for n in range(z.shape[1]):
                number = a * np.float32(z[r, n]) + c[n]
                y = number * scale[n] + shift[n]
                e = g[r, n] if abs(y) <= window else np.float32(0)
                g[r, n] = e
                total[n] += e
                product[n] += e * (number - mean[n])


@_compiled
def center(g, z, a, c, mean, factor, slope, offset, begin, end):
    """Errors at y become errors at the sums, in rows `begin` to `end`: factor · error − slope · (number − mean) − offset."""
    for r in range(begin, end):
        for n in range(z.shape[1]):
            number = a * np.float32(z[r, n]) + c[n]
            g[r, n] = factor[n] * g[r, n] - slope[n] * (number - mean[n]) - offset[n]


@_compiled
def count_ones(packed, counts):
    """How many bits of each row, uint8 [rows, bytes], are 1 → int64 [rows]."""
    start, row = np.intp(packed.ctypes.data), np.intp(packed.shape[1])
    for r in range(len(packed)):
        total = 0
        for j in range(row):
            total += ones(byte_at(start + r * row + j))
        counts[r] = total


@_compiled
def turn_bytes(x, first, last, out):
    """Bytes [rows, columns] → the rows `first` to `last` of [columns, ≥ rows]; `first` is a multiple of 16."""
    rows, row, to_row = len(x), np.intp(x.shape[1]), np.intp(out.shape[1])
    start, to = np.intp(x.ctypes.data), np.intp(out.ctypes.data)
    whole = first + (last - first) // WIDTH * WIDTH
    for k in range(first, whole, WIDTH):
        for r in range(0, rows // WIDTH * WIDTH, WIDTH):
            transpose_bytes(start + r * row + k, row, to + k * to_row + r, to_row)
        for r in range(rows // WIDTH * WIDTH, rows):
            for i in range(k, k + WIDTH):
                out[i, r] = x[r, i]
    for r in range(rows):
        for i in range(whole, last):
            out[i, r] = x[r, i]


@_compiled
def turn_floats(x, first, last, out):
    """float32 [rows, columns] → the rows `first` to `last`, a multiple of 16, of [columns, ≥ rows]."""
    rows, row, to_row = len(x), np.intp(4 * x.shape[1]), np.intp(4 * out.shape[1])
    start, to = np.intp(x.ctypes.data), np.intp(out.ctypes.data)
    for k in range(first, last, WIDTH):
        for r in range(0, rows // WIDTH * WIDTH, WIDTH):
            transpose_floats(start + r * row + 4 * k, row, to + k * to_row + 4 * r, to_row)
        for r in range(rows // WIDTH * WIDTH, rows):
            for i in range(k, k + WIDTH):
                out[i, r] = x[r, i]


@_compiled
def transpose_bits(by_byte, out):
    """Bits by bytes, uint8 [bytes, rows], rows a multiple of 64: the byte j of every row → uint8 [8 · bytes, rows / 8]."""
    columns, rows = by_byte.shape
    start, to, row = np.intp(by_byte.ctypes.data), np.intp(out.ctypes.data), np.intp(rows // 8)
    for j in range(columns):
        for r in range(0, rows, LANES):
            set_planes(to + 8 * j * row + r // 8, row, start + j * rows + r)


@_compiled
def bits_at(packed, inputs, positions, found):
    """The bits at flat positions of [rows, inputs], packed by rows, uint8 [rows, bytes] → float32."""
    for i in range(len(positions)):
        row, k = positions[i] // inputs, positions[i] % inputs
        found[i] = packed[row, k >> 3] >> (k & 7) & 1


@_compiled
def flip_at(packed, inputs, positions):
    """Flip those bits, in place."""
    for i in range(len(positions)):
        row, k = positions[i] // inputs, positions[i] % inputs
        packed[row, k >> 3] ^= np.uint8(1 << (k & 7))
