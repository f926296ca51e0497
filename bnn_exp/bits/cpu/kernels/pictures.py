"""A whole packed CNN as one compiled function, which walks a plan: records of `padded_pictures`, then a record of `network`.

A few pictures at a time pass through all layers, so the results of each layer stay in the second-level cache. A layer writes
its results inside the borders of the next layer's padded pictures.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.convolutions import aligned, average, convolution
from bnn_exp.bits.cpu.kernels.llvm import byte_at, copy, keep, set_byte, word_at
from bnn_exp.bits.cpu.kernels.network import OUTPUTS, finish, product, row_bytes
from bnn_exp.bits.cpu.kernels.padded_pictures import (
    AVERAGE,
    CHANNELS,
    HEIGHT,
    KIND,
    POOL,
    RECORD,
    SLACK,
    WIDE,
    inside,
    padded_bytes,
    padded_row,
    result_bytes,
    set_border,
)

_CACHE = 2**18  # the most bytes that two layers read for the pictures of one pass; a pass has at least one picture
_MOST = 16  # the most pictures of one pass


@kernel
def _place(record, pixels, picture):
    """Copies pixels, uint8 [channels, height, width], into the padded picture at address `picture`, channels last."""
    height, width, channels = word_at(record + HEIGHT), word_at(record + WIDE), word_at(record + CHANNELS)
    for c in range(channels):
        for y in range(height):
            to, at = picture + inside(record) + y * padded_row(record) + c, pixels + (c * height + y) * width
            if channels == 1:
                copy(to, at, width)
            else:
                for x in range(width):
                    set_byte(to + x * channels, byte_at(at + x))


@kernel
def _result_rows(record):
    """Returns the number of rows of a layer's results."""
    return 1 if word_at(record + KIND) == AVERAGE else word_at(record + HEIGHT) // word_at(record + POOL)


@kernel
def _result_row(record):
    """Returns the bytes of one row of a layer's results that are not padded."""
    if word_at(record + KIND) == AVERAGE:
        return word_at(record + CHANNELS)
    return word_at(record + WIDE) // word_at(record + POOL) * result_bytes(record)


@kernel
def pictures(plan, layers, x, row, rows, logits, classes):
    """Computes the network of `layers` records at `plan`, the last one of `network`, for `rows` pictures at x.

    Args:
        x: pixels, uint8 [rows, channels, height, width], `row` of them in each picture.
        logits: the address of float32 [rows, outputs]; 0 if no logits are wanted.
        classes: the address of int64 [rows], for the position of each row's greatest logit; 0 if none is wanted.
    """
    last = plan + (layers - 1) * RECORD
    columns, outputs = _result_rows(last - RECORD) * _result_row(last - RECORD), word_at(last + OUTPUTS)
    widest = max(columns, row_bytes(last))
    for i in range(layers - 1):
        widest = max(widest, padded_bytes(plan + i * RECORD))
    together = max(1, min(rows, _MOST, _CACHE // (2 * widest)))
    half = aligned(together * widest + SLACK)  # the sums of the last layer are int32
    memory = np.empty(2 * half, np.uint8)  # the inputs of two layers; each call has its own, so threads share nothing
    start = np.intp(memory.ctypes.data)
    for begin in range(0, rows, together):
        count, at = min(together, rows - begin), start
        for i in range(count):
            set_border(plan, at + i * padded_bytes(plan))
            _place(plan, x + (begin + i) * row, at + i * padded_bytes(plan))
        for k in range(1, layers):
            record, before = plan + k * RECORD, plan + (k - 1) * RECORD
            to = start + k % 2 * half
            out, out_row, out_picture = to, _result_row(before), columns
            if record != last:
                out, out_row, out_picture = to + inside(record), padded_row(record), padded_bytes(record)
                for i in range(count):
                    set_border(record, to + i * out_picture)
            if word_at(before + KIND) == AVERAGE:
                for i in range(count):
                    average(before, at + i * padded_bytes(before), out + i * out_picture)
            else:
                convolution(before, at, count, np.intp(0), _result_rows(before), out, out_row, out_picture)
            at = to
        sums = start + layers % 2 * half
        product(last, at, columns, count, sums, row_bytes(last))
        finish(last, sums, row_bytes(last), count, logits and logits + 4 * outputs * begin, classes and classes + 8 * begin)
    keep(memory)
