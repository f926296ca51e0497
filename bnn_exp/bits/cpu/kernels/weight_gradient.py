"""Kernels that compute only chosen entries of a weight gradient: Σ_b grad[b, n] · x[b, k] for some neurons n and inputs k.

The kernels take the samples b of a batch 16 at a time. The gradients of one neuron for 16 samples form a vector.
`entries_of_bits` adds the lanes of the vector where the input's bit is 1. `entries_of_pixels` multiplies the vector by the
input's pixels. All sums are float32. They differ from the sums of a matrix product by the order of their terms.

Arguments of both kernels:
    grad: the address of the gradient at the layer's sums, float32; a row of `row` numbers for each sample.
    x: the address of the inputs, transposed: a row of `column` bytes for each input.
    starts: int64 array; the entries of neuron n are starts[n] to starts[n + 1].
    inputs: int64 array; the input k of each entry.
    out: float32 array, to which each entry is added.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import WIDTH, float_at, keep, set_float
from bnn_exp.bits.cpu.kernels.vectors_16 import (
    add_times_bytes,
    add_where,
    floats_at,
    plus,
    total,
    transpose_float_block,
    zero_floats,
)

BLOCK = 1024  # rows of a batch at a time: their gradients at 16 neurons (64 KiB) stay in the cache


@kernel
def _turn_block(grad, row, rows, neurons, out):
    """Transposes the gradients of up to 16 neurons in `rows` ≤ BLOCK rows to float32 [neurons, BLOCK] at `out`.

    Zeros fill the number of rows up to a multiple of 16.
    """
    whole = rows // WIDTH * WIDTH if neurons == WIDTH else 0
    for r in range(0, whole, WIDTH):
        transpose_float_block(grad + 4 * r * row, 4 * row, out + 4 * r, 4 * BLOCK)
    for r in range(whole, rows):
        for n in range(neurons):
            set_float(out + 4 * (n * BLOCK + r), float_at(grad + 4 * (r * row + n)))
    for r in range(rows, -(-rows // WIDTH) * WIDTH):
        for n in range(neurons):
            set_float(out + 4 * (n * BLOCK + r), np.float32(0))


@kernel
def _add_four(out, e, last, base, scale, a, b, c, d):
    """Adds base + scale · (the sum of the lanes) of a, b, c and d to out[e], out[e + 1], …, up to out[last]."""
    out[e] += base + scale * total(a)
    if e < last:
        out[e + 1] += base + scale * total(b)
    if e + 1 < last:
        out[e + 2] += base + scale * total(c)
    if e + 2 < last:
        out[e + 3] += base + scale * total(d)


@kernel
def entries_of_bits(grad, row, rows, neurons, x, column, starts, inputs, zero, one, out):
    """Adds Σ_b grad[b, n] · x[b, inputs[e]] to out[e] for every entry e of every neuron n.

    For the other arguments, see the module.

    Args:
        x: packed bits of each input along the batch, with `column` ≥ ⌈rows / 16⌉ · 2.
        zero, one: the values of the bits 0 and 1 of x, float32.
    """
    block = np.empty((WIDTH, BLOCK), np.float32)
    scratch = np.intp(block.ctypes.data)  # intp: numba adds an unsigned and a signed integer as floats
    for begin in range(0, rows, BLOCK):
        size = min(BLOCK, rows - begin)
        steps = -(-size // WIDTH)
        at = x + begin // 8
        for first in range(0, neurons, WIDTH):
            _turn_block(grad + 4 * (begin * row + first), row, size, min(WIDTH, neurons - first), scratch)
            for n in range(first, min(first + WIDTH, neurons)):
                g = scratch + 4 * BLOCK * (n - first)
                last = starts[n + 1] - 1
                if last < starts[n]:
                    continue
                every = zero_floats()
                for s in range(steps):
                    every = plus(every, floats_at(g + 64 * s))
                base = zero * total(every)
                for e in range(starts[n], last + 1, 4):
                    p, q = at + inputs[e] * column, at + inputs[min(e + 1, last)] * column
                    u, v = at + inputs[min(e + 2, last)] * column, at + inputs[min(e + 3, last)] * column
                    a, b, c, d = zero_floats(), zero_floats(), zero_floats(), zero_floats()
                    for s in range(steps):
                        gradients = floats_at(g + 64 * s)
                        a = add_where(a, gradients, p + 2 * s)
                        b = add_where(b, gradients, q + 2 * s)
                        c = add_where(c, gradients, u + 2 * s)
                        d = add_where(d, gradients, v + 2 * s)
                    _add_four(out, e, last, base, one - zero, a, b, c, d)
    keep(block)


@kernel
def entries_of_pixels(grad, row, rows, neurons, x, column, starts, inputs, out):
    """Adds Σ_b grad[b, n] · x[b, inputs[e]] to out[e] for every entry e of every neuron n.

    For the other arguments, see the module.

    Args:
        x: the pixels of each input along the batch, uint8, with `column` ≥ ⌈rows / 16⌉ · 16.
    """
    block = np.empty((WIDTH, BLOCK), np.float32)
    scratch = np.intp(block.ctypes.data)  # intp: numba adds an unsigned and a signed integer as floats
    for begin in range(0, rows, BLOCK):
        size = min(BLOCK, rows - begin)
        steps = -(-size // WIDTH)
        at = x + begin
        for first in range(0, neurons, WIDTH):
            _turn_block(grad + 4 * (begin * row + first), row, size, min(WIDTH, neurons - first), scratch)
            for n in range(first, min(first + WIDTH, neurons)):
                g = scratch + 4 * BLOCK * (n - first)
                last = starts[n + 1] - 1
                for e in range(starts[n], last + 1, 4):
                    p, q = at + inputs[e] * column, at + inputs[min(e + 1, last)] * column
                    u, v = at + inputs[min(e + 2, last)] * column, at + inputs[min(e + 3, last)] * column
                    a, b, c, d = zero_floats(), zero_floats(), zero_floats(), zero_floats()
                    for s in range(steps):
                        gradients = floats_at(g + 64 * s)
                        a = add_times_bytes(a, gradients, p + 16 * s)
                        b = add_times_bytes(b, gradients, q + 16 * s)
                        c = add_times_bytes(c, gradients, u + 16 * s)
                        d = add_times_bytes(d, gradients, v + 16 * s)
                    _add_four(out, e, last, np.float32(0), np.float32(1), a, b, c, d)
    keep(block)
