"""The results of convolutions: sums of a strip of positions become codes or packed bits, max-pooled.

A *strip* is a few rows of positions. Its sums are int32 [positions, 16 · vectors], for some of the 64 outputs of a tile.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import LANES, WIDTH, byte_at, copy, ones, set_byte, set_int, set_word, signed_at, word_at
from bnn_exp.bits.cpu.kernels.padded_pictures import (
    BIAS,
    CHANNELS,
    CLASSES,
    GROUPS,
    HEIGHT,
    INVERTED,
    LEVELS,
    MULTIPLIER,
    OUTPUTS,
    POOL,
    SIZE,
    THRESHOLDS,
    WIDE,
    padded_row,
    position_bytes,
)
from bnn_exp.bits.cpu.kernels.vectors_convolutions import (
    set_codes_16,
    set_codes_32,
    set_codes_64,
    steps_of_16,
    steps_of_32,
    steps_of_64,
)

SPARE = 9 * LANES  # bytes for the biases, multipliers and codes of 64 outputs


@kernel
def store_codes(record, group, vectors, sums, height, out, out_row, spare):
    """Stores the codes of a strip of `height` rows of positions; the first row of the result is at address `out`.

    Args:
        spare: the address of SPARE bytes that the kernel may use.
    """
    width, pool, outputs = word_at(record + WIDE), word_at(record + POOL), word_at(record + OUTPUTS)
    levels, across, first = word_at(record + LEVELS), LANES * vectors, LANES * group
    bias, multiplier = word_at(record + BIAS) + 4 * first, word_at(record + MULTIPLIER) + 4 * first
    count, codes = min(WIDTH * vectors, outputs - first), spare + 8 * LANES
    partly = count < WIDTH * vectors
    if partly:
        copy(spare, bias, 4 * count)
        copy(spare + 4 * LANES, multiplier, 4 * count)
        bias, multiplier = spare, spare + 4 * LANES
    for y in range(height // pool):
        for x in range(width // pool):
            at, place = sums + (y * width + x) * pool * across, out + y * out_row + x * outputs + first
            to = codes if partly else place
            if vectors == 4:
                set_codes_64(to, at, pool, across, width * across, bias, multiplier, levels)
            elif vectors == 2:
                set_codes_32(to, at, pool, across, width * across, bias, multiplier, levels)
            else:
                set_codes_16(to, at, pool, across, width * across, bias, multiplier, levels)
            if partly:
                copy(place, codes, count)


@kernel
def set_classes(record, height, offsets):
    """Stores the offset of the border class in the thresholds, int64: for each row of a picture, then for each column."""
    width, classes, outputs = word_at(record + WIDE), word_at(record + CLASSES), LANES * word_at(record + GROUPS)
    half = classes // 2
    for y in range(height):
        set_word(offsets + 8 * y, 4 * outputs * classes * (min(y, half) + max(0, y - (height - 1 - half))))
    for x in range(width):
        set_word(offsets + 8 * (height + x), 4 * outputs * (min(x, half) + max(0, x - (width - 1 - half))))


@kernel
def store_bits(record, group, vectors, sums, counted, totals, rows, columns, height, out, out_row):
    """Stores the bits of a strip of `height` rows of positions.

    Args:
        counted: 1 if `sums` holds numbers n of common ones and u = 2n − Σ x; 0 if `sums` holds the sums u.
        totals: the address of Σ x under the kernel for each position of the strip, int32. Not used if `counted` is 0.
        rows, columns: the addresses of the offsets of the strip's rows and of the columns, see `set_classes`.
        out: the address of the first row of the result.
    """
    width, pool, outputs = word_at(record + WIDE), word_at(record + POOL), word_at(record + OUTPUTS)
    each, row = LANES * vectors, (outputs + 7) // 8
    thresholds, inverted = word_at(record + THRESHOLDS) + 4 * LANES * group, word_at(record + INVERTED) + 8 * group
    flips, count = word_at(inverted), min(8, row - 8 * group)
    for y in range(height // pool):
        for x in range(width // pool):
            found = np.int64(0)
            for dy in range(y * pool, (y + 1) * pool):
                limits = thresholds + word_at(rows + 8 * dy)
                for dx in range(x * pool, (x + 1) * pool):
                    p = dy * width + dx
                    shift, to = -signed_at(totals + 4 * p) if counted else 0, limits + word_at(columns + 8 * dx)
                    if vectors == 4:
                        found |= steps_of_64(sums + p * each, counted, shift, to)
                    elif vectors == 2:
                        found |= steps_of_32(sums + p * each, counted, shift, to)
                    else:
                        found |= steps_of_16(sums + p * each, counted, shift, to)
            found ^= flips
            to = out + y * out_row + x * row + 8 * group
            if count == 8:
                set_word(to, found)
            else:
                for i in range(count):
                    set_byte(to + i, found >> 8 * i)


@kernel
def _ones_at(address, channels):
    """Returns the number of ones of `channels` packed bits."""
    total, whole = 0, channels // 64
    for i in range(whole):
        total += ones(word_at(address + 8 * i))
    for i in range(8 * whole, channels // 8):
        total += ones(byte_at(address + i))
    if channels % 8:
        total += ones(byte_at(address + channels // 8) & (1 << channels % 8) - 1)
    return total


@kernel
def set_totals(record, picture, totals):
    """Stores Σ x under the kernel for each position, int32 [height, width], of the padded picture of bits at `picture`."""
    height, width, size = word_at(record + HEIGHT), word_at(record + WIDE), word_at(record + SIZE)
    row, each, channels, wide = padded_row(record), position_bytes(record), word_at(record + CHANNELS), width + size - 1
    counts, down = np.empty((height + size - 1) * wide, np.int32), np.zeros(wide, np.int32)
    for y in range(height + size - 1):
        for x in range(wide):
            counts[y * wide + x] = _ones_at(picture + y * row + x * each, channels)
    for y in range(height + size - 1):
        for x in range(wide):
            down[x] += counts[y * wide + x]
        if y >= size - 1:
            total = 0
            for x in range(wide):
                total += down[x]
                if x >= size - 1:
                    set_int(totals + 4 * ((y - size + 1) * width + x - size + 1), total)
                    total -= down[x - size + 1]
            for x in range(wide):
                down[x] -= counts[(y - size + 1) * wide + x]
