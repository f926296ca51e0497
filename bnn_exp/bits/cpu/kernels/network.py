"""A whole packed network as one compiled function, which walks a *plan*: a record of 64-bit integers for each layer.

A record holds addresses and constants, at the places below, in bytes. `KIND` says how a layer computes its sums Σ x·w from
its input: `PIXELS` or `BITS`. A layer with thresholds turns its sums into packed bits, the input of the next layer. The last
layer has no thresholds: `network` turns its sums into logits.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import fused_kernel, kernel
from bnn_exp.bits.cpu.kernels.llvm import LANES, float_at, keep, set_float, set_word, signed_at, word_at
from bnn_exp.bits.cpu.kernels.pixels import pixel_product
from bnn_exp.bits.cpu.kernels.products import bit_product

KIND, COLUMNS, GROUPS, ZERO, TILES, THRESHOLDS, INVERTED = range(0, 56, 8)  # see `products.bit_product`
OUTPUTS, OFFSET, FACTOR, DIVISOR, SCALE, SHIFT = range(56, 104, 8)  # of the last layer, see `_logits`
RECORD = 104  # bytes
PIXELS, BITS = range(2)
_ROWS = 256  # rows at a time: what passes between their layers stays in the second-level cache


@kernel
def address(array):
    """Returns the address of an array's numbers. numpy's `ctypes.data` takes several times as long."""
    return np.intp(array.ctypes.data)


@kernel
def row_bytes(record):
    """Returns the bytes of one row of a layer's results: packed bits, or sums, int32."""
    return word_at(record + GROUPS) * (LANES // 8 if word_at(record + THRESHOLDS) else 4 * LANES)


@fused_kernel
def _logits(record, sums, out):
    """Stores (offset + factor · sum) / divisor · scale + shift at `out`, float32, for the int32 sums of one row.

    The bracket and the quotient are rounded to float32. Product and last sum are rounded once where the processor has the
    instruction (fused multiply-add), as in torch's batch_norm. `out` may be `sums`.
    """
    offset, scale, shift = word_at(record + OFFSET), word_at(record + SCALE), word_at(record + SHIFT)
    factor, divisor = word_at(record + FACTOR), np.float32(word_at(record + DIVISOR))
    for i in range(0, 4 * word_at(record + OUTPUTS), 4):
        quotient = np.float32(signed_at(offset + i) + factor * signed_at(sums + i)) / divisor
        set_float(out + i, quotient * float_at(scale + i) + float_at(shift + i))


@kernel
def _likeliest(logits, count):
    """Returns the position of the greatest of `count` float32, the first among equals. A NaN counts as the greatest."""
    best, found = float_at(logits), 0
    for i in range(1, count):
        value = float_at(logits + 4 * i)
        if best == best and not value <= best:
            best, found = value, i
    return found


@kernel
def finish(record, sums, row, rows, logits, classes):
    """Turns sums of the last layer, `rows` rows of `row` bytes, into logits and classes; see `network`. May overwrite sums."""
    outputs = word_at(record + OUTPUTS)
    for r in range(rows):
        at = sums + r * row
        out = logits + 4 * outputs * r if logits else at
        _logits(record, at, out)
        if classes:
            set_word(classes + 8 * r, _likeliest(out, outputs))


@kernel
def product(record, x, row, rows, out, out_row):
    """Computes a layer for `rows` rows of `row` bytes at x: packed bits, or sums for the last layer."""
    columns, groups, zero = word_at(record + COLUMNS), word_at(record + GROUPS), word_at(record + ZERO)
    tiles, thresholds, inverted = word_at(record + TILES), word_at(record + THRESHOLDS), word_at(record + INVERTED)
    if word_at(record + KIND) == PIXELS:
        pixel_product(x, row, rows, tiles, columns, 0, groups, zero, thresholds, inverted, out, out_row)
    else:
        bit_product(x, row, rows, tiles, columns, 0, groups, zero, thresholds, inverted, out, out_row)


@kernel
def network(plan, layers, x, row, rows, logits, classes):
    """Computes the network of `layers` records at `plan` for `rows` rows of `row` pixels at x, uint8.

    Args:
        logits: the address of float32 [rows, outputs]; 0 if no logits are wanted.
        classes: the address of int64 [rows], for the position of each row's greatest logit; 0 if none is wanted.
    """
    last = plan + (layers - 1) * RECORD
    outputs, width = word_at(last + OUTPUTS), 0
    for i in range(layers):
        width = max(width, row_bytes(plan + i * RECORD))
    half = min(rows, _ROWS) * width
    memory = np.empty(2 * half, np.uint8)  # the results of two layers; each call has its own, so threads share nothing
    start = np.intp(memory.ctypes.data)
    for begin in range(0, rows, _ROWS):
        size, at, at_row = min(_ROWS, rows - begin), x + begin * row, row
        for i in range(layers):
            record, to = plan + i * RECORD, start + i % 2 * half
            product(record, at, at_row, size, to, row_bytes(record))
            at, at_row = to, row_bytes(record)
        finish(last, at, at_row, size, logits and logits + 4 * outputs * begin, classes and classes + 8 * begin)
    keep(memory)
