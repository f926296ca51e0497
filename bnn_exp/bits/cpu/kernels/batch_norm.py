"""BatchNorm and the binary activation of a layer of bits in training, forward and backward.

The sums `z` of a layer are int16 or float32 [rows, width], where width is a multiple of 64. A sum stands for the number
a·z + c[neuron], exact in float32. The argument of the activation is y = (a·z + c)·scale + shift. Where the processor has
the instruction (fused multiply-add), the product and the last sum are rounded once, as in torch's batch_norm. y is never
stored: every kernel computes it again from z. Vectors are float32 [width].

A kernel takes a range of rows or columns, so that threads can share the work. The division of the work changes no result.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import fused_kernel, kernel
from bnn_exp.bits.cpu.kernels.llvm import WIDTH, keep
from bnn_exp.bits.cpu.kernels.vectors_16 import (
    floats_at,
    minus,
    over,
    plus,
    repeated,
    set_floats,
    set_not_negative,
    shorts_at,
    times_plus,
    zero_floats,
)

CHUNK = 256  # rows that one float32 sum adds up; the sums of all chunks are added in float64


@fused_kernel
def _number(z, size, a, c):
    """Returns 16 numbers a·z + c, float32. `z` is the address of 16 int16 if `size` is 2 bytes, else of 16 float32."""
    return times_plus(shorts_at(z) if size == 2 else floats_at(z), a, c)


@fused_kernel
def _plus_square(total, numbers, mean):
    """Returns total + (numbers − mean)², 16 float32."""
    difference = minus(numbers, mean)
    return times_plus(difference, difference, total)


@fused_kernel
def _set_four(address, a, b, c, d):
    """Stores four vectors of 16 float32 at `address`."""
    set_floats(address, a)
    set_floats(address + 64, b)
    set_floats(address + 128, c)
    set_floats(address + 192, d)


@fused_kernel
def moments(z, a, c, first, last, mean, squares):
    """Writes, for each column from `first` to `last` − 1, the mean of the numbers a·z + c to `mean` and Σ (number − mean)² to
    `squares`, float32.

    The rows are added one after the other, as torch does on one thread.
    """
    rows, row, size = len(z), z.shape[1] * z.itemsize, z.itemsize
    start, shifts, means, sums = np.intp(z.ctypes.data), c.ctypes.data, mean.ctypes.data, squares.ctypes.data
    a, count = repeated(a), repeated(np.float32(rows))
    for n in range(first, last, 4 * WIDTH):
        begin, at = start + n * size, np.intp(shifts + 4 * n)
        to, out = np.intp(means + 4 * n), np.intp(sums + 4 * n)
        c, d, e, f = floats_at(at), floats_at(at + 64), floats_at(at + 128), floats_at(at + 192)
        p, q, s, t = zero_floats(), zero_floats(), zero_floats(), zero_floats()
        for r in range(rows):
            x = begin + r * row
            p, q = plus(p, _number(x, size, a, c)), plus(q, _number(x + WIDTH * size, size, a, d))
            s, t = plus(s, _number(x + 2 * WIDTH * size, size, a, e)), plus(t, _number(x + 3 * WIDTH * size, size, a, f))
        p, q, s, t = over(p, count), over(q, count), over(s, count), over(t, count)
        _set_four(to, p, q, s, t)
        u, v, x, y = zero_floats(), zero_floats(), zero_floats(), zero_floats()
        for r in range(rows):
            at = begin + r * row
            u = _plus_square(u, _number(at, size, a, c), p)
            v = _plus_square(v, _number(at + WIDTH * size, size, a, d), q)
            x = _plus_square(x, _number(at + 2 * WIDTH * size, size, a, e), s)
            y = _plus_square(y, _number(at + 3 * WIDTH * size, size, a, f), t)
        _set_four(out, u, v, x, y)


@kernel
def norm_vectors(mean, squares, rows, weight, bias, eps, inverse, scale, shift, unbiased):
    """Writes the vectors of a BatchNorm of `rows` numbers in each column, float32 [width].

    Args:
        mean, squares: the results of `moments`.
        weight, bias: the parameters of the BatchNorm, float32 [neurons]. Further columns get scale 0 and shift −∞.
        inverse: receives 1/σ.
        scale, shift: receive what turns a number into y = number · scale + shift.
        unbiased: receives the variance for the running statistics, Σ (number − mean)² / (rows − 1).
    """
    for n in range(len(mean)):
        variance = np.float64(squares[n]) / rows
        inverse[n] = np.float32(1.0 / np.sqrt(variance + eps))
        unbiased[n] = np.float32(variance * rows / (rows - 1))
        if n < len(weight):
            scale[n] = inverse[n] * weight[n]
            shift[n] = np.float32(np.float64(bias[n]) - np.float64(mean[n]) * np.float64(scale[n]))
        else:
            scale[n], shift[n] = np.float32(0), np.float32(-np.inf)


@kernel
def gradient_vectors(totals, products, rows, inverse, factor, batch, slope, offset, of_weight, of_bias):
    """Writes what `center` needs, and the gradients of weight and bias of a BatchNorm, float32 [width].

    Args:
        totals, products: the results of `pass_window`, float32 [chunks, width].
        inverse, factor: 1/σ and the scale of the BatchNorm, float32 [width].
        batch: True if mean and variance come from this batch, so that the gradient passes through them too.
    """
    for n in range(len(inverse)):
        total, product = 0.0, 0.0
        for chunk in range(len(totals)):
            total += np.float64(totals[chunk, n])
            product += np.float64(products[chunk, n])
        of_weight[n], of_bias[n] = np.float32(product * np.float64(inverse[n])), np.float32(total)
        slope[n], offset[n] = np.float32(0), np.float32(0)
        if batch:
            squared = np.float64(inverse[n]) * np.float64(inverse[n])
            slope[n] = factor[n] * np.float32(product * squared / rows)
            offset[n] = factor[n] * np.float32(total / rows)


@fused_kernel
def normalized(z, a, c, scale, shift, begin, end, y):
    """Computes rows `begin` to `end` of y = (a·z + c)·scale + shift, float32 [rows, width]."""
    for r in range(begin, end):
        for n in range(z.shape[1]):
            y[r, n] = (a * np.float32(z[r, n]) + c[n]) * scale[n] + shift[n]


@fused_kernel
def activations(z, a, c, scale, shift, begin, end, bits):
    """Computes rows `begin` to `end` of the packed bits 1[(a·z + c)·scale + shift ≥ 0], uint8 [rows, width / 8]."""
    y = np.empty(z.shape[1], np.float32)
    at, to, row = np.intp(y.ctypes.data), np.intp(bits.ctypes.data), np.intp(bits.shape[1])
    for r in range(begin, end):
        for n in range(z.shape[1]):
            y[n] = (a * np.float32(z[r, n]) + c[n]) * scale[n] + shift[n]
        for n in range(0, z.shape[1], WIDTH):
            set_not_negative(to + r * row + n // 8, floats_at(at + 4 * n))
    keep(y)


@fused_kernel
def pass_window(grad, z, a, c, scale, shift, mean, window, begin, end, totals, products):
    """Sets the gradient to 0, in place, where |y| > window for y = (a·z + c)·scale + shift.

    Args:
        grad: the gradient at y, float32 [rows, width].
        begin, end: the range of rows to change, made of whole chunks.
        totals, products: float32 [chunks, width]; receive Σ grad and Σ grad · (number − mean) of each chunk.
    """
    for first in range(begin, end, CHUNK):
        total, product = totals[first // CHUNK], products[first // CHUNK]
        total[:] = 0
        product[:] = 0
        for r in range(first, min(first + CHUNK, end)):
            for n in range(z.shape[1]):
                number = a * np.float32(z[r, n]) + c[n]
                y = number * scale[n] + shift[n]
                g = grad[r, n] if abs(y) <= window else np.float32(0)
                grad[r, n] = g
                total[n] += g
                product[n] += g * (number - mean[n])


@fused_kernel
def center(grad, z, a, c, mean, factor, slope, offset, begin, end):
    """Turns rows `begin` to `end` of the gradient at y, float32 [rows, width], into the gradient at a·z + c.

    The result, factor · grad − slope · (a·z + c − mean) − offset, replaces the gradient.
    """
    for r in range(begin, end):
        for n in range(z.shape[1]):
            number = a * np.float32(z[r, n]) + c[n]
            grad[r, n] = factor[n] * grad[r, n] - slope[n] * (number - mean[n]) - offset[n]
