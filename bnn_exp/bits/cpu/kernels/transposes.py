"""Kernels that transpose bytes, float32 and packed bits."""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import LANES, WIDTH
from bnn_exp.bits.cpu.kernels.vectors_16 import transpose_byte_block, transpose_float_block
from bnn_exp.bits.cpu.kernels.vectors_64 import store_planes


@kernel
def transpose_bytes(x, first, last, out):
    """Copies columns `first` to `last` of x, uint8 [rows, columns], to the rows of `out`, uint8 [columns, ≥ rows].

    `first` is a multiple of 16.
    """
    rows, row, to_row = len(x), np.intp(x.shape[1]), np.intp(out.shape[1])
    start, to = np.intp(x.ctypes.data), np.intp(out.ctypes.data)
    whole = first + (last - first) // WIDTH * WIDTH
    for k in range(first, whole, WIDTH):
        for r in range(0, rows // WIDTH * WIDTH, WIDTH):
            transpose_byte_block(start + r * row + k, row, to + k * to_row + r, to_row)
        for r in range(rows // WIDTH * WIDTH, rows):
            for i in range(k, k + WIDTH):
                out[i, r] = x[r, i]
    for r in range(rows):
        for i in range(whole, last):
            out[i, r] = x[r, i]


@kernel
def transpose_floats(x, begin, first, last, out):
    """Copies columns `begin` + `first` to `begin` + `last` of x, float32 [rows, columns], to rows `first` to `last` of `out`.

    `out` is float32 [columns, ≥ rows]. `first` and `last` are multiples of 16.
    """
    rows, row, to_row = len(x), np.intp(4 * x.shape[1]), np.intp(4 * out.shape[1])
    start, to = np.intp(x.ctypes.data) + 4 * begin, np.intp(out.ctypes.data)
    for k in range(first, last, WIDTH):
        for r in range(0, rows // WIDTH * WIDTH, WIDTH):
            transpose_float_block(start + r * row + 4 * k, row, to + k * to_row + 4 * r, to_row)
        for r in range(rows // WIDTH * WIDTH, rows):
            for i in range(k, k + WIDTH):
                out[i, r] = x[r, begin + i]


@kernel
def transpose_bits(by_byte, out):
    """Transposes packed bits whose bytes are transposed already: uint8 [bytes, rows] → `out`, uint8 [8 · bytes, rows / 8].

    `rows` is a multiple of 64.
    """
    columns, rows = by_byte.shape
    start, to, row = np.intp(by_byte.ctypes.data), np.intp(out.ctypes.data), np.intp(rows // 8)
    for j in range(columns):
        for r in range(0, rows, LANES):
            store_planes(to + 8 * j * row + r // 8, row, start + j * rows + r)
