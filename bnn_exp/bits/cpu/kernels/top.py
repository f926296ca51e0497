"""Kernels of HyperMask's mask `top`: of the bits that the gradient wants flipped, the k with the largest |g|/size flip.

No kernel sorts. The *key* of a bit is |g|/size, or 0 if the gradient does not want a flip. A key's float32 pattern is an
integer of 31 bits, and these integers have the order of the keys. Three passes find the bits of the k-th largest key, from the
highest bits on. A pass takes the keys whose higher bits are those of the k-th key, and counts them by their next ten or eleven
bits. Each pass computes the keys anew.

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

DIGITS = (20, 11), (10, 10), (0, 10)  # for each pass: the number of lower bits, and the number of bits that it finds
OTHERS = 32  # counts of the keys that a pass does not take, see `tally`
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
def tally(w, row, packed, g, stride, half, columns, begin, end, of_rows, of_columns, upper, shift, bits, counts):
    """Counts the keys above 0 in rows `begin` to `end` by the `bits` bits above the lower `shift` bits.

    Args:
        upper: the value of the bits above these, in the keys that are counted.
        counts: int64 [2^bits + OTHERS], to which the numbers of keys are added. All other keys are added to the last OTHERS
            counts in turn, since a processor waits between two additions to one count.
    """
    scratch, size = np.empty(SCRATCH, np.float32), of_rows[0]
    keys, above, mask = scratch.view(np.int32), np.int32(shift + bits), np.int32((1 << bits) - 1)
    shift, upper, others = np.int32(shift), np.int32(upper), np.int32(1 << bits)
    for r in range(begin, end):
        if len(of_rows) > 1:
            size = of_rows[r]
        for c in range(0, columns, BLOCK):
            n = min(BLOCK, columns - c)
            at = w + r * row + (c >> 3 if packed else 4 * c)
            _read_keys(at, packed, g + (r * stride + c) * (2 if half else 4), half, size, of_columns[c:], n, scratch)
            for i in range(n):
                counted = (keys[i] > 0) & (keys[i] >> above == upper)
                keys[i] = keys[i] >> shift & mask if counted else others + np.int32(i & OTHERS - 1)
            for i in range(n):
                counts[np.uint32(keys[i])] += 1


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
            at = w + r * row + (c >> 3 if packed else 4 * c)
            _read_keys(at, packed, g + (r * stride + c) * (2 if half else 4), half, size, of_columns[c:], n, scratch)
            equal = 0
            for i in range(n):
                scratch[FLIPS + i] = np.float32(scratch[i] > last)
                equal += scratch[i] == last
            if equal:
                for i in range(n):
                    if ties > 0 and scratch[i] == last:
                        scratch[FLIPS + i] = np.float32(1)
                        ties -= 1
            flips += flip_block(at, packed, n, scratch)
    return flips
