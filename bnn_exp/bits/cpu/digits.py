"""Errors of few bits: numbers rounded at random to small integers with one scale for a row, and their products with bits.

Stochastic rounding (Gupta et al. 2015, arXiv 1502.02551): x becomes ⌊x/s + u⌋ with u uniform in [0, 1), whose mean is x/s. The
product is the Method of Four Russians on bytes: the 16 sums that 4 bits can make of 4 integers from −7 to 7 are 16 bytes, and
one shuffle looks up those of 64 columns. Its sums are integers, the same in any order, so on any number of threads and any
machine. Integers to ±112 are taken as two digits to the base of 15, each from −7 to 7.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from bnn_exp.bits.cpu.kernels import (
    BYTES,
    LANES,
    _all,
    _at,
    _compiled,
    _emit,
    _f32,
    _function,
    _i8,
    bytes_at,
    no_bytes,
)

DIGIT = 7  # the greatest
BASE = 2 * DIGIT + 1
MOST = {4: DIGIT, 8: BASE * DIGIT + DIGIT}  # by bits: the greatest integer
MOST_ROWS = 4096  # of bits in a product: 56 · 4096 / 4 < 2¹⁶

_OFFSET = 4 * DIGIT  # that makes a sum of four digits a whole number ≥ 0
_i16 = ir.IntType(16)
_shorts = ir.VectorType(_i16, LANES // 2)


class _Shorts(types.Type):
    def __init__(self):
        super().__init__(name="Shorts32")


SHORTS = _Shorts()


@register_model(_Shorts)
class _ShortsModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, _shorts)


@intrinsic
def no_shorts(_typing):
    return _emit(SHORTS(), lambda b: ir.Constant(_shorts, None))


@intrinsic
def set_tables(_typing, address, digits, zero):
    """The 16 sums, + _OFFSET, that bits (1, `zero`) make of each 4 of the 16 digits at `digits`: 64 bytes at address."""

    def codegen(b, address, digits, zero):
        given, negated = b.load(_at(b, digits, ir.VectorType(_i8, 16)), align=1), _all(b, b.trunc(zero, _i8))
        sums = ir.Constant(BYTES.ir, [_OFFSET] * LANES)
        for j in range(4):
            places = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [4 * (lane // 16) + j for lane in range(LANES)])
            digit = b.shuffle_vector(given, ir.Constant(given.type, ir.Undefined), places)
            one = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [lane % 16 >> j & 1 for lane in range(LANES)])
            sums = b.add(sums, b.select(one, digit, b.and_(negated, b.neg(digit))))
        b.store(sums, _at(b, address, BYTES.ir), align=1)

    return _emit(types.void(types.intp, types.intp, types.intp), codegen)


@intrinsic
def low_nibbles(_typing, weights):
    return _emit(BYTES(BYTES), lambda b, w: b.and_(w, ir.Constant(BYTES.ir, [15] * LANES)))


@intrinsic
def high_nibbles(_typing, weights):
    return _emit(BYTES(BYTES), lambda b, w: b.lshr(w, ir.Constant(BYTES.ir, [4] * LANES)))


@intrinsic
def add_looked_up(_typing, sums, table, nibbles):
    """sums + the byte of the 16 at `table` that each nibble names."""

    def codegen(b, sums, table, nibbles):
        one = b.load(_at(b, table, ir.VectorType(_i8, 16)), align=1)
        places = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [*range(16)] * 4)
        four = b.shuffle_vector(one, ir.Constant(one.type, ir.Undefined), places)
        shuffle = _function(b, "llvm.x86.avx512.pshuf.b.512", BYTES.ir, BYTES.ir, BYTES.ir)
        return b.add(sums, b.call(shuffle, [four, nibbles]))

    return _emit(BYTES(BYTES, types.intp, BYTES), codegen)


@intrinsic
def add_even(_typing, total, sums):
    """total + the bytes 0, 2, 4, …"""

    def codegen(b, total, sums):
        return b.add(total, b.and_(b.bitcast(sums, _shorts), ir.Constant(_shorts, [255] * (LANES // 2))))

    return _emit(SHORTS(SHORTS, BYTES), codegen)


@intrinsic
def add_odd(_typing, total, sums):
    """total + the bytes 1, 3, 5, …"""

    def codegen(b, total, sums):
        return b.add(total, b.lshr(b.bitcast(sums, _shorts), ir.Constant(_shorts, [8] * (LANES // 2))))

    return _emit(SHORTS(SHORTS, BYTES), codegen)


@intrinsic
def set_sums(_typing, address, even, odd, offset, base, scale):
    """The 64 numbers scale · (sum − offset + base · what is there), as float32, to address."""

    def codegen(b, address, even, odd, offset, base, scale):
        ints, floats = (ir.VectorType(kind, LANES) for kind in (ir.IntType(32), _f32))
        order = ir.Constant(ints, [lane // 2 + lane % 2 * (LANES // 2) for lane in range(LANES)])
        sums = b.zext(b.shuffle_vector(even, odd, order), ints)
        numbers = b.sitofp(b.sub(sums, _all(b, b.trunc(offset, ir.IntType(32)))), floats)
        there = _at(b, address, floats)
        before = b.select(b.fcmp_ordered("==", base, _f32(0.0)), ir.Constant(floats, None), b.load(there, align=4))
        numbers = b.fadd(numbers, b.fmul(_all(b, base), before))
        b.store(b.fmul(_all(b, scale), numbers), there, align=4)

    return _emit(types.void(types.intp, SHORTS, SHORTS, types.intp, types.float32, types.float32), codegen)


@_compiled
def _uniform(key, place):
    """A number in [0, 1) that depends on key and place alone, uint32 (the hash `lowbias32` of C. Wellons, 24 bits of it)."""
    x = np.uint32(place) * np.uint32(0x9E3779B9) ^ np.uint32(key)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = np.uint32(x ^ (np.uint32(x) >> np.uint32(15))) * np.uint32(0x846CA68B)
    x = np.uint32(x) ^ (np.uint32(x) >> np.uint32(16))
    return np.float32(np.uint32(x) >> np.uint32(8)) * np.float32(2.0**-24)


@_compiled
def round_rows(x, begin, end, most, key, codes, scales):
    """Rows `begin` to `end` of x, float32 [rows, columns] → integers from −most to most, int8, and what 1 stands for, float32.

    They go to rows 0, 1, … of `codes` and `scales`; a row's numbers depend on its place in x, not on what is taken with it.
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


@_compiled
def split_digits(codes, high, low):
    """Integers int8 → the digits with high · BASE + low = code."""
    for r in range(codes.shape[0]):
        for n in range(codes.shape[1]):
            code = np.int32(codes[r, n])
            digit = (code + DIGIT + BASE * DIGIT) // BASE - DIGIT
            high[r, n] = digit
            low[r, n] = code - BASE * digit


@_compiled
def digit_product(digits, row, rows, neurons, weights, inputs, zero, base, scales, out, out_row):
    """out[b, k] ← scales[b] · (Σ_n digits[b, n] · V[n, k] + base · out[b, k]).

    `digits`: int8 rows of `row` bytes; `neurons`: a multiple of 16, ≤ MOST_ROWS; `weights`: the bits of V along the neurons, as
    tiles of 64 inputs (`reference.to_tiles`); `zero`: what 0 stands for; `scales`: a float32 array; `out`: float32 rows of
    `out_row` numbers, not read where `base` is 0.
    """
    tables = np.empty((4, 4 * neurons), np.uint8)
    start, step = np.intp(tables.ctypes.data), 4 * neurons
    offset = _OFFSET * (neurons // 4)
    for r in range(0, rows, 4):
        size = min(4, rows - r)
        for i in range(size):
            for n in range(0, neurons, 16):
                set_tables(start + i * step + 4 * n, digits + (r + i) * row + n, zero)
        for k in range(0, inputs, LANES):
            a, b, c, d = no_shorts(), no_shorts(), no_shorts(), no_shorts()
            e, f, g, h = no_shorts(), no_shorts(), no_shorts(), no_shorts()
            for n in range(0, neurons, 16):
                p, q, u, v = no_bytes(), no_bytes(), no_bytes(), no_bytes()
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
