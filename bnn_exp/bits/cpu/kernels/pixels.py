"""The product of pixels with bits in inference: Σ x·w for 64 outputs at a time, as `products` computes it for bits.

The *matches* of an output are here the sum of the pixels where its weight's bit is 1. For a single row the kernel makes weights
from bits inside registers. Four rows at a time share a tile of weights as bytes, 50 KiB for 784 pixels. Both ways skip eight
neighbouring pixels that are 0. For the arguments, see `products`.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import LANES, byte_at, keep, set_byte, word_at
from bnn_exp.bits.cpu.kernels.products import store_result
from bnn_exp.bits.cpu.kernels.vectors_64 import zero_ints
from bnn_exp.bits.cpu.kernels.vectors_pixels import add_eight, add_four, spread

_WORDS = 32  # words of 8 pixels that four lanes of 16 bits add up: 4 · 2 · 32 · 255 < 2¹⁶


@kernel
def _total(x, words):
    """Returns the sum of the 8 · `words` uint8 at x."""
    total = 0
    for first in range(0, words, _WORDS):
        lanes = 0
        for j in range(first, min(first + _WORDS, words)):
            word = word_at(x + 8 * j)
            lanes += (word & 0x00FF00FF00FF00FF) + (word >> 8 & 0x00FF00FF00FF00FF)
        total += lanes * 0x0001000100010001 >> 48 & 0xFFFF  # the product's highest lane is the sum of all four
    return total


@kernel
def _weighted(x, tile, columns):
    """Returns, for each of the 64 outputs of `tile`, the sum of the pixels at x where its weight's bit is 1, int32."""
    sums = zero_ints()
    for j in range(columns):
        if word_at(x + 8 * j):
            sums = add_eight(sums, x + 8 * j, tile + LANES * j)
    return sums


@kernel
def _weighted_of_four(x, row, weights, columns):
    """Returns the sums of `_weighted` for four rows. `weights` is the address of the tile's bits as bytes, see `spread`."""
    a, b, c, d = zero_ints(), zero_ints(), zero_ints(), zero_ints()
    for j in range(columns):
        p = x + 8 * j
        q, r, s = p + row, p + 2 * row, p + 3 * row
        if word_at(p) | word_at(q) | word_at(r) | word_at(s):
            for _ in range(2):
                a, b = add_four(a, p, weights), add_four(b, q, weights)
                c, d = add_four(c, r, weights), add_four(d, s, weights)
                p, q, r, s, weights = p + 4, q + 4, r + 4, s + 4, weights + 4 * LANES
        else:
            weights += 8 * LANES
    return a, b, c, d


@kernel
def _copy_rows(x, row, rows, out, out_row):
    """Copies `rows` rows of `row` bytes to rows of `out_row` bytes, whose further bytes become 0."""
    for r in range(rows):
        for i in range(row):
            set_byte(out + r * out_row + i, byte_at(x + r * row + i))
        for i in range(row, out_row):
            set_byte(out + r * out_row + i, 0)


@kernel
def pixel_product(x, row, rows, tiles, columns, first, last, zero, thresholds, inverted, out, out_row):
    """Stores the results of `products.bit_product` for rows of `row` pixels."""
    padded = np.empty(8 * columns * rows if row % 8 else 0, np.uint8)  # rows of whole words
    if row % 8:
        _copy_rows(x, row, rows, np.intp(padded.ctypes.data), 8 * columns)
        x, row = np.intp(padded.ctypes.data), 8 * columns
    totals = np.empty(rows, np.int64)
    for r in range(rows):
        totals[r] = _total(x + r * row, columns)
    fours = rows // 4 * 4
    spread_tile = np.empty(8 * LANES * columns if fours else 0, np.uint8)
    weights = np.intp(spread_tile.ctypes.data)  # intp: numba adds an unsigned and a signed integer as floats
    for g in range(first, last):
        tile = tiles + g * columns * LANES
        for j in range(columns if fours else 0):
            spread(weights + 8 * LANES * j, tile + LANES * j)
        for r in range(0, fours, 4):
            a, b, c, d = _weighted_of_four(x + r * row, row, weights, columns)
            to = out + r * out_row
            store_result(a, totals[r], zero, g, thresholds, inverted, to)
            store_result(b, totals[r + 1], zero, g, thresholds, inverted, to + out_row)
            store_result(c, totals[r + 2], zero, g, thresholds, inverted, to + 2 * out_row)
            store_result(d, totals[r + 3], zero, g, thresholds, inverted, to + 3 * out_row)
        for r in range(fours, rows):
            store_result(_weighted(x + r * row, tile, columns), totals[r], zero, g, thresholds, inverted, out + r * out_row)
    keep(padded)
    keep(spread_tile)
