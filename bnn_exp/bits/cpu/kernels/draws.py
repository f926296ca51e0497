"""Kernels for the random numbers of `bnn_exp.bits.philox`, which defines them in plain torch.

Numbers of 32 bits stand in uint64, so that a product of two of them is whole.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import below_among_64, keep, lowest_one

BLOCK = 1024  # random numbers at a time: they stay in the cache
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_FIRST, _SECOND = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # the multipliers of Philox 4×32-10
_WEYL, _OTHER_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_UNIT = np.float32(4.6566127342e-10)  # just below 2⁻³¹


@kernel
def _fraction(word):
    """Returns a 32-bit word as a float32 in [0, 1)."""
    signed = np.int32(np.uint32(word))
    return np.float32(signed ^ (signed >> np.int32(31))) * _UNIT


@kernel
def fractions(key, step, draw, place, count, out):
    """Stores the random numbers of the places from ⌊place / 4⌋ · 4 to at least place + count − 1, float32, in `out`.

    Args:
        key, step, draw: as in `bnn_exp.bits.philox.words`, int64.
    """
    k, now, third = np.uint64(key), np.uint64(step), np.uint64(draw) & _LOW
    for i in range((place % 4 + count + 3) >> 2):
        a, b, c, d = np.uint64((place >> 2) + i) & _LOW, now & _LOW, now >> _HALF, third
        even, odd = k & _LOW, k >> _HALF
        for _ in range(10):
            p, q = _FIRST * a, _SECOND * c
            a, b, c, d = (q >> _HALF) ^ b ^ even, q & _LOW, (p >> _HALF) ^ d ^ odd, p & _LOW
            even, odd = (even + _WEYL) & _LOW, (odd + _OTHER_WEYL) & _LOW
        out[4 * i] = _fraction(a)
        out[4 * i + 1] = _fraction(b)
        out[4 * i + 2] = _fraction(c)
        out[4 * i + 3] = _fraction(d)


@kernel
def uniform(key, step, draw, out):
    """Fills a vector with the random numbers of the places from 0 on, float32."""
    scratch = np.empty(BLOCK, np.float32)
    for first in range(0, len(out), BLOCK):
        count = min(BLOCK, len(out) - first)
        fractions(key, step, draw, first, count, scratch)
        for i in range(count):
            out[first + i] = scratch[i]


@kernel
def below(key, step, draw, count, share, out):
    """Stores the places from 0 to count − 1 whose random number is below `share`, int64 and sorted.

    Returns:
        The number of these places. If `out` may be too short for them: −1.
    """
    scratch, found = np.empty(BLOCK, np.float32), 0
    numbers = np.intp(scratch.ctypes.data)
    for first in range(0, count, BLOCK):
        if found + BLOCK > len(out):
            return -1
        size = min(BLOCK, count - first)
        fractions(key, step, draw, first, size, scratch)
        for i in range(size, -(-size // 64) * 64):
            scratch[i] = np.float32(2)  # no share is above 1
        for i in range(0, size, 64):
            left = below_among_64(numbers + 4 * i, share)
            while left:
                out[found] = first + i + lowest_one(left)
                found += 1
                left &= left - 1
    keep(scratch)
    return found
