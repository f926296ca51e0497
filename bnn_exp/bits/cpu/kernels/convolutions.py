"""Convolutions of codes and of bits with packed weights, as `bnn_exp.bits.convolutions` defines them.

A kernel reads *padded* pictures: `size // 2` positions surround each picture, so every kernel row lies in the memory as one run
of bytes, and a kernel never looks for a border. The kernels take a tile of 64 outputs after the other. They first bring its
weights into the order that the vector instructions read. A *strip* is a few rows of positions, whose sums stay in the
first-level cache until they are codes or bits.

A layer is a record of 64-bit integers at the places below, in bytes. Addresses of tensors that a layer lacks are 0.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import (
    LANES,
    WIDTH,
    byte_at,
    float_at,
    keep,
    ones,
    set_byte,
    set_int,
    set_word,
    signed_at,
    word_at,
)
from bnn_exp.bits.cpu.kernels.vectors_16 import zero_ints
from bnn_exp.bits.cpu.kernels.vectors_convolutions import (
    add_codes,
    clear,
    clear_weights,
    copy,
    set_codes_16,
    set_codes_32,
    set_codes_64,
    set_ints,
    spread_bits,
    spread_codes,
    steps_of_16,
    steps_of_32,
    steps_of_64,
    sums_of_bits_1x4,
    sums_of_bits_4x4,
    sums_of_bits_8x1,
    sums_of_bits_8x2,
    sums_of_codes_1x4,
    sums_of_codes_4x4,
    sums_of_codes_8x1,
    sums_of_codes_8x2,
)

KIND, HEIGHT, WIDE, CHANNELS, SIZE, POOL, OUTPUTS, ZERO = range(0, 64, 8)  # WIDE: the width of a picture
TILES, COLUMNS, GROUPS = range(64, 88, 8)  # COLUMNS: bytes of one output's weights
PADDING, BIAS, MULTIPLIER, LEVELS = range(88, 120, 8)  # of codes: PADDING of the input, the rest of the result
THRESHOLDS, CLASSES, INVERTED = range(120, 144, 8)  # of bits; CLASSES: border classes of a row, 1 or SIZE
RECORD = 144
CODES, BITS, AVERAGE = range(3)  # kinds: a convolution that reads codes or bits, or a mean over all positions

_STRIP = 256  # vectors of sums (16 KiB) that a strip holds at most, if it has more than `pool` rows
SPARE = 9 * LANES  # bytes for the biases, multipliers and codes of 64 outputs
SLACK = 64  # bytes that a kernel may read after the last picture


@kernel
def aligned(address):
    """Returns the first multiple of 64 from `address` on."""
    return (address + 63) // 64 * 64


@kernel
def position_bytes(record):
    """Returns the bytes of one position of a layer's input."""
    channels = word_at(record + CHANNELS)
    return (channels + 7) // 8 if word_at(record + KIND) == BITS else channels


@kernel
def result_bytes(record):
    """Returns the bytes of one position of a layer's result: codes, or packed bits if the layer has thresholds."""
    outputs = word_at(record + OUTPUTS)
    return (outputs + 7) // 8 if word_at(record + THRESHOLDS) else outputs


@kernel
def padded_row(record):
    """Returns the bytes of one row of a layer's padded pictures."""
    return (word_at(record + WIDE) + word_at(record + SIZE) // 2 * 2) * position_bytes(record)


@kernel
def padded_bytes(record):
    """Returns the bytes of one padded picture that a layer reads."""
    return (word_at(record + HEIGHT) + word_at(record + SIZE) // 2 * 2) * padded_row(record)


@kernel
def inside(record):
    """Returns the bytes from the start of a layer's padded picture to the picture's first position."""
    return word_at(record + SIZE) // 2 * (padded_row(record) + position_bytes(record))


@kernel
def _set_outside(record, at, count, zeros):
    """Sets `count` positions outside the picture, the first at address `at`; to 0 if `zeros` is True."""
    each, padding = position_bytes(record), word_at(record + PADDING)
    if zeros:
        clear(at, count * each)
    else:
        for i in range(count):
            copy(at + i * each, padding, each)


@kernel
def set_border(record, picture):
    """Sets the positions around the picture in the padded picture at address `picture`."""
    height, width, half = word_at(record + HEIGHT), word_at(record + WIDE), word_at(record + SIZE) // 2
    padding, zeros = word_at(record + PADDING), True
    for i in range(position_bytes(record) if padding and half else 0):
        zeros = zeros and byte_at(padding + i) == 0
    around, row = half * (width + 2 * half) + half, padded_row(record)  # from the first position to the picture
    if half == 0:
        return
    _set_outside(record, picture, around, zeros)
    for y in range(half + 1, half + height):  # the end of a row and the start of the next one lie side by side
        _set_outside(record, picture + y * row - half * position_bytes(record), 2 * half, zeros)
    _set_outside(record, picture + (half + height) * row - half * position_bytes(record), around, zeros)


@kernel
def copy_inside(record, x, picture):
    """Copies the picture at x, without padding, into the padded picture at address `picture`."""
    row = word_at(record + WIDE) * position_bytes(record)
    first = picture + inside(record)
    for y in range(word_at(record + HEIGHT)):
        copy(first + y * padded_row(record), x + y * row, row)


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
            weights += step * min(2, fours - 2 * j)  # what comes next overwrites a four without inputs
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
        first = min(first, positions - rows)  # the last block computes some positions again
        to = sums + first * LANES * vectors
        _block_sums(bits, x, offsets + 8 * first, runs, step, fours, stride, weights, vectors, rows, to)


@kernel
def _store_codes(record, group, vectors, sums, height, out, out_row, spare):
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
def _set_classes(record, height, offsets):
    """Stores for each row, then for each column of a picture the offset of its border class in the thresholds, int64."""
    width, classes, outputs = word_at(record + WIDE), word_at(record + CLASSES), LANES * word_at(record + GROUPS)
    half = classes // 2
    for y in range(height):
        set_word(offsets + 8 * y, 4 * outputs * classes * (min(y, half) + max(0, y - (height - 1 - half))))
    for x in range(width):
        set_word(offsets + 8 * (height + x), 4 * outputs * (min(x, half) + max(0, x - (width - 1 - half))))


@kernel
def _store_bits(record, group, vectors, sums, counted, totals, rows, columns, height, out, out_row):
    """Stores the bits of a strip of `height` rows of positions.

    Args:
        counted: 1 if a sum u is 2 · the number at `sums` − Σ x, 0 if it is the number itself.
        totals: the address of Σ x under the kernel for each position of the strip, int32. Not used if `counted` is 0.
        rows, columns: the addresses of the offsets of the strip's rows and of the columns, see `_set_classes`.
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
def _set_totals(record, picture, totals):
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


@kernel
def convolution(record, x, pictures, first, last, out, out_row, out_picture):
    """Computes rows `first` to `last` of the results of a layer for padded pictures at x, one behind the other.

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
    _set_classes(record, height, classes)
    for i in range(pictures if counted else 0):
        _set_totals(record, x + i * picture, totals + 4 * numbers * i)
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
                    _store_bits(record, g, vectors, sums, counted, ours, down, across, strip, to, out_row)
                else:
                    _store_codes(record, g, vectors, sums, strip, to, out_row, spare)
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
    """Computes rows `first` to `last` of the results of a layer for `pictures` pictures at x, without padding.

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
