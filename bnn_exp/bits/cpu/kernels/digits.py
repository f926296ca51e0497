"""Numbers rounded at random to small integers with one scale for each row, and the products of these integers with bits.

Stochastic rounding (Gupta et al. 2015, arXiv 1502.02551): x becomes ⌊x/s + u⌋ with u uniform in [0, 1), whose mean is x/s. The
product uses the Method of Four Russians (Arlazarov et al. 1970) on bytes: the 16 sums that 4 bits can make of 4 integers from
−7 to 7 are 16 bytes, and one shuffle looks up the sums of 64 columns. The results are sums of integers. They do not depend on
the order of the terms, the number of threads or the machine. An integer up to ±112 is two digits to the base 15, each from −7
to 7.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import LANES, keep
from bnn_exp.bits.cpu.kernels.vectors_64 import bytes_at, zero_bytes
from bnn_exp.bits.cpu.kernels.vectors_digits import (
    DIGIT,
    OFFSET,
    add_even,
    add_looked_up,
    add_odd,
    high_nibbles,
    low_nibbles,
    set_sums,
    set_tables,
    zero_shorts,
)

BASE = 2 * DIGIT + 1
MOST = {4: DIGIT, 8: BASE * DIGIT + DIGIT}  # number of bits: the greatest integer to which a gradient is rounded
MOST_ROWS = 4096  # the most neurons in one product. Each four add at most 56, and a sum has 16 bits: 56 · 4096 / 4 < 2¹⁶


@kernel
def _uniform(key, place):
    """Returns a float32 in [0, 1) that depends on `key` and `place`, uint32, alone: 24 bits of C. Wellons's `lowbias32`."""
    x = np.uint32(place) * np.uint32(0x9E3779B9) ^ np.uint32(key)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = np.uint32(x ^ (np.uint32(x) >> np.uint32(15))) * np.uint32(0x846CA68B)
    x = np.uint32(x) ^ (np.uint32(x) >> np.uint32(16))
    return np.float32(np.uint32(x) >> np.uint32(8)) * np.float32(2.0**-24)


@kernel
def round_rows(x, begin, end, most, key, codes, scales):
    """Rounds rows `begin` to `end` of x, float32 [rows, columns], at random to integers from −most to most.

    The result of a row depends on `key` and the row's index in x, not on `begin` and `end`.

    Args:
        codes: receives the integers in its rows 0, 1, …, int8.
        scales: receives the real number that the integer 1 of each row stands for, float32.
    """
    for r in range(begin, end):
        greatest = np.float32(0)
        for n in range(x.shape[1]):
            greatest = max(greatest, abs(x[r, n]))
        scale = greatest / np.float32(most)
        inverse = np.float32(0) if scale == 0 else np.float32(1) / scale
        scales[r - begin] = scale
        row = codes[r - begin]
        for n in range(x.shape[1]):
            rounded = np.floor(x[r, n] * inverse + _uniform(key, r * x.shape[1] + n))
            row[n] = np.int8(min(max(rounded, np.float32(-most)), np.float32(most)))


@kernel
def split_digits(codes, high, low):
    """Splits int8 integers into digits from −DIGIT to DIGIT, int8, with high · BASE + low = code. All are [rows, columns]."""
    for r in range(codes.shape[0]):
        for n in range(codes.shape[1]):
            code = np.int32(codes[r, n])
            digit = (code + DIGIT + BASE * DIGIT) // BASE - DIGIT
            high[r, n] = digit
            low[r, n] = code - BASE * digit


@kernel
def digit_product(digits, row, rows, neurons, weights, inputs, zero, base, scales, out, out_row):
    """Computes out[b, k] ← scales[b] · (Σ_n digits[b, n] · V[n, k] + base · out[b, k]).

    Args:
        digits: the address of int8 rows, `row` bytes each.
        neurons: the number of terms n, a multiple of 16, at most MOST_ROWS.
        weights: the address of the bits of V, packed along the neurons, as tiles of 64 inputs (`reference.to_tiles`).
        zero: the value of a bit 0 of V, 0 or −1.
        scales: a float32 array.
        out: the address of float32 rows, `out_row` numbers each. With `base` 0 their content is not used.
    """
    tables = np.empty((4, 4 * neurons), np.uint8)
    start, step = np.intp(tables.ctypes.data), 4 * neurons
    offset = OFFSET * (neurons // 4)
    for r in range(0, rows, 4):
        size = min(4, rows - r)
        for i in range(size):
            for n in range(0, neurons, 16):
                set_tables(start + i * step + 4 * n, digits + (r + i) * row + n, zero)
        for k in range(0, inputs, LANES):
            a, b, c, d = zero_shorts(), zero_shorts(), zero_shorts(), zero_shorts()
            e, f, g, h = zero_shorts(), zero_shorts(), zero_shorts(), zero_shorts()
            for n in range(0, neurons, 16):
                p, q, u, v = zero_bytes(), zero_bytes(), zero_bytes(), zero_bytes()
                for half in range(2):
                    bits = bytes_at(weights + neurons // 8 * k + LANES * (n // 8 + half))
                    low, high, table = low_nibbles(bits), high_nibbles(bits), start + 4 * n + 32 * half
                    p = add_looked_up(add_looked_up(p, table, low), table + 16, high)
                    q = add_looked_up(add_looked_up(q, table + step, low), table + step + 16, high)
                    u = add_looked_up(add_looked_up(u, table + 2 * step, low), table + 2 * step + 16, high)
                    v = add_looked_up(add_looked_up(v, table + 3 * step, low), table + 3 * step + 16, high)
                a, b, c, d = add_even(a, p), add_odd(b, p), add_even(c, q), add_odd(d, q)
                e, f, g, h = add_even(e, u), add_odd(f, u), add_even(g, v), add_odd(h, v)
            to = out + 4 * (r * out_row + k)
            set_sums(to, a, b, offset, base, scales[r])
            if size > 1:
                set_sums(to + 4 * out_row, c, d, offset, base, scales[r + 1])
            if size > 2:
                set_sums(to + 8 * out_row, e, f, offset, base, scales[r + 2])
            if size > 3:
                set_sums(to + 12 * out_row, g, h, offset, base, scales[r + 3])
    keep(tables)
