"""Convolutions of codes and of bits with packed weights, as `bnn_exp.bits.convolutions` defines them.

The kernels read padded pictures (`padded_pictures`). So each row of a convolution's kernel is one run of bytes in memory, and
the borders need no code of their own. The kernels compute one tile of 64 outputs after the other. First they bring the weights
of the tile into the order in which the vector instructions read them. Then they compute strips. A *strip* is a few rows of
positions, whose sums stay in the first-level cache until they become codes or bits (`convolution_results`).
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.convolution_results import (
    SPARE,
    set_classes,
    set_totals,
    store_bits,
    store_codes,
)
from bnn_exp.bits.cpu.kernels.llvm import LANES, WIDTH, copy, float_at, keep, set_word, word_at
from bnn_exp.bits.cpu.kernels.padded_pictures import (
    AVERAGE,
    BITS,
    CHANNELS,
    COLUMNS,
    GROUPS,
    HEIGHT,
    KIND,
    LEVELS,
    MULTIPLIER,
    OUTPUTS,
    POOL,
    SIZE,
    SLACK,
    THRESHOLDS,
    TILES,
    WIDE,
    ZERO,
    copy_inside,
    padded_bytes,
    padded_row,
    position_bytes,
    result_bytes,
    set_border,
)
from bnn_exp.bits.cpu.kernels.vectors_16 import (
    zero_ints,
)
from bnn_exp.bits.cpu.kernels.vectors_convolutions import (
    add_codes,
    clear_weights,
    set_codes_16,
    set_ints,
    spread_bits,
    spread_codes,
    sums_of_bits_1x4,
    sums_of_bits_4x4,
    sums_of_bits_8x1,
    sums_of_bits_8x2,
    sums_of_codes_1x4,
    sums_of_codes_4x4,
    sums_of_codes_8x1,
    sums_of_codes_8x2,
)

_STRIP = 256  # the most vectors of sums (16 KiB) in a strip; a strip of only `pool` rows may have more


@kernel
def aligned(address):
    """Returns the first multiple of 64 from `address` on."""
    return (address + 63) // 64 * 64


@kernel
def _spread_tile(record, group, vectors, fours, weights):
    """Stores the weights of a tile for 16 · `vectors` outputs at address `weights`, uint8 [size, fours, vectors, 64]."""
    size, columns, zero = word_at(record + SIZE), word_at(record + COLUMNS), word_at(record + ZERO)
    tile = word_at(record + TILES) + group * columns * LANES
    run, step = columns // size, LANES * vectors  # bytes of the weights of one kernel row
    if word_at(record + KIND) == BITS:
        for ky in range(size):
            for i in range(fours):
                for v in range(vectors):
                    spread_bits(weights + LANES * v, tile + (ky * run + 4 * i) * LANES + WIDTH * v, min(4, run - 4 * i))
                weights += step
        return
    inputs = size * word_at(record + CHANNELS)
    for ky in range(size):
        for j in range(run):
            for v in range(vectors):
                spread_codes(weights + LANES * v, step, tile + (ky * run + j) * LANES + WIDTH * v, zero)
            weights += step * min(2, fours - 2 * j)  # the next weights overwrite a four without inputs
        for v in range(vectors if inputs % 4 else 0):
            clear_weights(weights - step + LANES * v, inputs % 4)


@kernel
def _block_sums(bits, x, offsets, runs, step, fours, stride, weights, vectors, rows, sums):
    """Stores the sums of `rows` positions for 16 · `vectors` outputs, see `vectors_convolutions._block`."""
    if bits:
        if rows == 1:
            sums_of_bits_1x4(x, offsets, runs, step, fours, stride, weights, sums)
        elif vectors == 1:
            sums_of_bits_8x1(x, offsets, runs, step, fours, stride, weights, sums)
        elif vectors == 2:
            sums_of_bits_8x2(x, offsets, runs, step, fours, stride, weights, sums)
        else:
            sums_of_bits_4x4(x, offsets, runs, step, fours, stride, weights, sums)
    elif rows == 1:
        sums_of_codes_1x4(x, offsets, runs, step, fours, stride, weights, sums)
    elif vectors == 1:
        sums_of_codes_8x1(x, offsets, runs, step, fours, stride, weights, sums)
    elif vectors == 2:
        sums_of_codes_8x2(x, offsets, runs, step, fours, stride, weights, sums)
    else:
        sums_of_codes_4x4(x, offsets, runs, step, fours, stride, weights, sums)


@kernel
def _strip_sums(record, x, offsets, positions, fours, weights, vectors, rows, sums):
    """Stores the sums of a strip of `positions` positions, int32 [positions, 16 · vectors]; the first is at x."""
    bits, runs, step, stride = word_at(record + KIND) == BITS, word_at(record + SIZE), padded_row(record), 4
    if fours == 1:  # the fours of all kernel rows form one run
        runs, fours, stride = 1, runs, step
    for first in range(0, positions, rows):
        first = min(first, positions - rows)  # the last block starts earlier and computes some positions again
        to = sums + first * LANES * vectors
        _block_sums(bits, x, offsets + 8 * first, runs, step, fours, stride, weights, vectors, rows, to)


@kernel
def convolution(record, x, pictures, first, last, out, out_row, out_picture):
    """Computes the rows `first` to `last` − 1 of the results of a layer, for padded pictures that lie one after the other at x.

    Args:
        out: the address of the first position of the first result. Positions of a row stand side by side.
        out_row, out_picture: bytes from one row and from one picture of the result to the next.
    """
    height, width, size, pool = word_at(record + HEIGHT), word_at(record + WIDE), word_at(record + SIZE), word_at(record + POOL)
    bits, each, row, picture = word_at(record + KIND) == BITS, position_bytes(record), padded_row(record), padded_bytes(record)
    widest = 4 if word_at(record + OUTPUTS) > 2 * WIDTH else 2 if word_at(record + OUTPUTS) > WIDTH else 1  # vectors
    first, last = first * pool, last * pool  # rows of positions
    rows = min(last - first, max(1, _STRIP // (width * pool * widest)) * pool)  # of a strip
    positions, fours = rows * width, (size * each + 3) // 4
    if positions == 0:
        return
    least = ((last - first) % rows or rows) * width  # positions of the smallest strip
    numbers, counted = height * width, 1 if bits and word_at(record + ZERO) else 0
    sizes = (size * fours + 1) * 4 * LANES, 4 * LANES * positions, 8 * (positions + height + width)
    memory = np.empty(64 + SPARE + sizes[0] + sizes[1] + sizes[2] + (4 * numbers * pictures if counted else 0), np.uint8)
    spare = aligned(np.intp(memory.ctypes.data))
    weights = spare + SPARE
    sums = weights + sizes[0]
    offsets = sums + sizes[1]
    classes = offsets + 8 * positions
    totals = offsets + sizes[2]
    for p in range(positions):
        set_word(offsets + 8 * p, p // width * row + p % width * each)
    set_classes(record, height, classes)
    for i in range(pictures if counted else 0):
        set_totals(record, x + i * picture, totals + 4 * numbers * i)
    for g in range(word_at(record + GROUPS)):
        outputs = min(LANES, word_at(record + OUTPUTS) - LANES * g)
        vectors = 4 if outputs > 2 * WIDTH or least < 8 else 2 if outputs > WIDTH else 1
        block = 1 if least < 4 else 4 if vectors == 4 else 8
        _spread_tile(record, g, vectors, fours, weights)
        for i in range(pictures):
            for y in range(first, last, rows):
                strip = min(rows, last - y)
                at, to = x + i * picture + y * row, out + i * out_picture + y // pool * out_row
                _strip_sums(record, at, offsets, strip * width, fours, weights, vectors, block, sums)
                if word_at(record + THRESHOLDS):
                    ours, down, across = totals + 4 * (numbers * i + y * width), classes + 8 * y, classes + 8 * height
                    store_bits(record, g, vectors, sums, counted, ours, down, across, strip, to, out_row)
                else:
                    store_codes(record, g, vectors, sums, strip, to, out_row, spare)
    keep(memory)


@kernel
def average(record, x, out):
    """Stores the codes of `average_codes` for the picture at x at address `out`. Reads up to SLACK bytes after the picture."""
    channels, levels, multiplier = word_at(record + CHANNELS), word_at(record + LEVELS), float_at(word_at(record + MULTIPLIER))
    memory = np.zeros(2 * WIDTH + WIDTH // 4, np.int32)  # sums, biases of 0 and codes
    factors = np.full(WIDTH, multiplier, np.float32)
    sums, multipliers = np.intp(memory.ctypes.data), np.intp(factors.ctypes.data)
    bias, codes = sums + 4 * WIDTH, sums + 8 * WIDTH
    for first in range(0, channels, WIDTH):
        total = zero_ints()
        for i in range(word_at(record + HEIGHT) * word_at(record + WIDE)):
            total = add_codes(total, x + i * channels + first)
        set_ints(sums, total)
        set_codes_16(codes, sums, 1, 1, 1, bias, multipliers, levels)
        copy(out + first, codes, min(WIDTH, channels - first))
    keep(memory)
    keep(factors)


@kernel
def layer(record, x, pictures, first, last, out):
    """Computes the rows `first` to `last` − 1 of the results of a layer, for `pictures` pictures without padding at x.

    `out` is the address of the first picture's result; see `bnn_exp.bits.convolutions`.
    """
    padded, each = padded_bytes(record), word_at(record + HEIGHT) * word_at(record + WIDE) * position_bytes(record)
    memory = np.empty(pictures * padded + SLACK, np.uint8)
    start = np.intp(memory.ctypes.data)
    for i in range(pictures):
        set_border(record, start + i * padded)
        copy_inside(record, x + i * each, start + i * padded)
    if word_at(record + KIND) == AVERAGE:
        for i in range(pictures):
            average(record, start + i * padded, out + i * word_at(record + CHANNELS))
    else:
        pool = word_at(record + POOL)
        out_row = word_at(record + WIDE) // pool * result_bytes(record)
        convolution(record, start, pictures, first, last, out, out_row, word_at(record + HEIGHT) // pool * out_row)
    keep(memory)
