"""The products of bits and real numbers with bits: 64 outputs at a time, a byte of each in a vector.

A step takes one byte of an input row (8 inputs) and, for each of the 64 outputs of a tile, the byte of its weights for these
inputs. It counts the *matches*: the inputs where both bytes have a 1. With w = 1 for a weight's bit 1 and w = `zero`, 0 or −1,
for a bit 0, Σ x·w is (1 − zero) · matches + zero · Σ x.

Arguments of every kernel, beside addresses:
    row, out_row: bytes from one row of the input or the output to the next.
    columns: bytes of one output's weights.
    first, last: the range of tiles to compute.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import LANES, byte_at, float_at, ones
from bnn_exp.bits.cpu.kernels.vectors_64 import (
    add_matches,
    add_where_one,
    bytes_at,
    scale_and_shift,
    scale_and_shift_floats,
    store,
    store_shorts,
    store_steps,
    widen,
    zero_bytes,
    zero_floats,
    zero_ints,
)

_STEPS = 31  # a step counts at most 8 matches, and a byte holds the counts of 31 steps: 31 · 8 ≤ 255
_ROWS = 256  # rows of bits at a time: their int16 sums (512 KiB for 1024 outputs) stay in the second-level cache


@kernel
def _matches(x, tile, columns):
    """Returns the number of ones that each of the 64 outputs of `tile` has in common with the `columns` bytes at x, int32."""
    total = zero_ints()
    while columns > 0:
        run = min(columns, _STEPS)
        columns -= run
        counts = zero_bytes()
        for _ in range(run):
            counts = add_matches(counts, bytes_at(tile), x)
            x, tile = x + 1, tile + LANES
        total = widen(total, counts)
    return total


@kernel
def _matches_of_four(x, row, tile, columns):
    """Returns the numbers of `_matches` for four rows, the first at x, each `row` bytes after the one before."""
    p, q, r, s = zero_ints(), zero_ints(), zero_ints(), zero_ints()
    while columns > 0:
        run = min(columns, _STEPS)
        columns -= run
        a, b, c, d = zero_bytes(), zero_bytes(), zero_bytes(), zero_bytes()
        for _ in range(run):
            weights = bytes_at(tile)
            a = add_matches(a, weights, x)
            b = add_matches(b, weights, x + row)
            c = add_matches(c, weights, x + 2 * row)
            d = add_matches(d, weights, x + 3 * row)
            x, tile = x + 1, tile + LANES
        p, q, r, s = widen(p, a), widen(q, b), widen(r, c), widen(s, d)
    return p, q, r, s


@kernel
def _count_ones(x, columns):
    total = 0
    for i in range(columns):
        total += ones(byte_at(x + i))
    return total


@kernel
def store_result(matches, x_total, zero, group, thresholds, inverted, out):
    """Stores the results of tile `group` in the row at `out`: the 64 sums Σ x·w, int32, or packed bits 1[sum ≥ threshold].

    Args:
        matches: the numbers of `_matches`, int32.
        x_total: Σ x.
        thresholds: the address of the thresholds, int32; 0 to store the sums.
        inverted: the address of packed bits; where one is 1, the output bit is inverted.
    """
    sums = scale_and_shift(matches, 1 - zero, zero * x_total)
    if thresholds:
        store_steps(out + 8 * group, sums, thresholds + 4 * LANES * group, inverted + 8 * group)
    else:
        store(out + 4 * LANES * group, sums)


@kernel
def bit_product(x, row, rows, tiles, columns, first, last, zero, thresholds, inverted, out, out_row):
    """Stores tiles `first` to `last` of the sums Σ x·w of `rows` rows of bits, int32, at address `out`.

    If `thresholds` is not 0, stores packed bits 1[sum ≥ threshold] in the place of the sums; see `store_result`. For the other
    arguments, see the module.
    """
    totals = np.empty(rows, np.int64)
    for r in range(rows):
        totals[r] = _count_ones(x + r * row, columns)
    fours = rows // 4 * 4
    for g in range(first, last):
        tile = tiles + g * columns * LANES
        for r in range(0, fours, 4):
            a, b, c, d = _matches_of_four(x + r * row, row, tile, columns)
            to = out + r * out_row
            store_result(a, totals[r], zero, g, thresholds, inverted, to)
            store_result(b, totals[r + 1], zero, g, thresholds, inverted, to + out_row)
            store_result(c, totals[r + 2], zero, g, thresholds, inverted, to + 2 * out_row)
            store_result(d, totals[r + 3], zero, g, thresholds, inverted, to + 3 * out_row)
        for r in range(fours, rows):
            store_result(_matches(x + r * row, tile, columns), totals[r], zero, g, thresholds, inverted, out + r * out_row)


@kernel
def bit_sums_int16(x, row, rows, tiles, columns, groups, zero, out):
    """Stores the sums Σ x·w of `rows` rows of bits at `out`, int16 [rows, 64 · groups]. For the arguments, see the module."""
    out_row = 2 * LANES * groups
    for first in range(0, rows, _ROWS):
        size = min(_ROWS, rows - first)
        totals = np.empty(size, np.int64)
        for r in range(size):
            totals[r] = _count_ones(x + (first + r) * row, columns)
        for g in range(groups):
            tile, at, to = tiles + g * columns * LANES, x + first * row, out + first * out_row + 2 * LANES * g
            for r in range(0, size // 4 * 4, 4):
                a, b, c, d = _matches_of_four(at + r * row, row, tile, columns)
                store_shorts(to + r * out_row, scale_and_shift(a, 1 - zero, zero * totals[r]))
                store_shorts(to + (r + 1) * out_row, scale_and_shift(b, 1 - zero, zero * totals[r + 1]))
                store_shorts(to + (r + 2) * out_row, scale_and_shift(c, 1 - zero, zero * totals[r + 2]))
                store_shorts(to + (r + 3) * out_row, scale_and_shift(d, 1 - zero, zero * totals[r + 3]))
            for r in range(size // 4 * 4, size):
                a = _matches(at + r * row, tile, columns)
                store_shorts(to + r * out_row, scale_and_shift(a, 1 - zero, zero * totals[r]))


@kernel
def real_product(x, row, rows, tiles, columns, first, last, zero, one, out, out_row):
    """Computes tiles `first` to `last` of Σ x·w for `rows` rows of 8 · `columns` float32, with w = `one` or `zero`, float32."""
    for r in range(rows):
        total = np.float32(0)
        for i in range(8 * columns):
            total += float_at(x + r * row + 4 * i)
        for g in range(first, last):
            sums = zero_floats()
            for j in range(columns):
                sums = add_where_one(sums, bytes_at(tiles + (g * columns + j) * LANES), x + r * row + 32 * j)
            store(out + r * out_row + 4 * LANES * g, scale_and_shift_floats(sums, one - zero, zero * total))
