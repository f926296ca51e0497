"""Kernels of HyperMask's mask `top`: of the bits that the gradient wants flipped, the k with the largest |g|/size flip.

No kernel sorts. The *key* of a bit is |g|/size, or 0 if the gradient does not want a flip. A key's float32 pattern is an
integer that orders like the number. One pass counts the keys by their upper 16 bits, and another by the lower 16 bits those
keys whose upper bits are the k-th key's. Keys are computed anew in each pass.

For the arguments of the kernels see `bnn_exp.bits.cpu.kernels.rules`.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.draws import BLOCK
from bnn_exp.bits.cpu.kernels.rules import (
    FLIPS,
    SCALARS,
    SCRATCH,
    SIGNS,
    SIZES,
    flip_block,
    read_gradients,
    read_signs,
    read_sizes,
)

BINS = 1 << 16
_wanted = SCALARS["wanted"]


@kernel
def _read_keys(w, packed, g, half, size, of_columns, count, scratch):
    """Writes the keys of `count` bits over their gradients in the scratch memory."""
    read_gradients(g, half, count, scratch)
    read_signs(w, packed, count, scratch)
    read_sizes(size, of_columns, count, scratch)
    for i in range(count):
        scratch[i] = _wanted(scratch[i], scratch[SIGNS + i], scratch[SIZES + i])


@kernel
def tally(w, row, packed, g, stride, half, columns, begin, end, of_rows, of_columns, upper, counts):
    """Counts the keys above 0 in rows `begin` to `end` in `counts`, int64 [BINS].

    Args:
        upper: the upper 16 bits of the keys that count by their lower 16 bits. −1: all keys count by their upper 16 bits.
    """
    scratch, size = np.empty(SCRATCH, np.float32), of_rows[0]
    keys = scratch.view(np.uint32)
    for r in range(begin, end):
        if len(of_rows) > 1:
            size = of_rows[r]
        for c in range(0, columns, BLOCK):
            n = min(BLOCK, columns - c)
            bits = w + r * row + (c >> 3 if packed else 4 * c)
            _read_keys(bits, packed, g + (r * stride + c) * (2 if half else 4), half, size, of_columns[c:], n, scratch)
            if upper < 0:
                for i in range(n):
                    counts[keys[i] >> 16] += keys[i] > 0
            else:
                for i in range(n):
                    if keys[i] >> 16 == upper:
                        counts[keys[i] & 0xFFFF] += keys[i] > 0


@kernel
def flip_largest(w, row, packed, g, stride, half, columns, begin, end, of_rows, of_columns, last, ties):
    """Flips the bits in rows `begin` to `end` whose keys are above `last`, and the first `ties` of those with a key of `last`.

    Returns:
        The number of flips.
    """
    scratch, flips, size = np.empty(SCRATCH, np.float32), 0, of_rows[0]
    for r in range(begin, end):
        if len(of_rows) > 1:
            size = of_rows[r]
        for c in range(0, columns, BLOCK):
            n = min(BLOCK, columns - c)
            bits = w + r * row + (c >> 3 if packed else 4 * c)
            _read_keys(bits, packed, g + (r * stride + c) * (2 if half else 4), half, size, of_columns[c:], n, scratch)
            equal = 0
            for i in range(n):
                scratch[FLIPS + i] = np.float32(scratch[i] > last)
                equal += scratch[i] == last
            if equal:
                for i in range(n):
                    if ties > 0 and scratch[i] == last:
                        scratch[FLIPS + i] = np.float32(1)
                        ties -= 1
            flips += flip_block(bits, packed, n, scratch)
    return flips
