"""The product G · V of real numbers G and the values V of bits, by look-ups of sums in bfloat16 (Arlazarov et al. 1970).

Five bits have 32 patterns, and each pattern gives one sum of five real numbers. These 32 sums, rounded to bfloat16, fill one
vector. One instruction looks up the sums of two groups of five numbers for 16 outputs. Another adds both sums in float32. So
the product rounds every fifth partial sum to bfloat16, where a product of bfloat16 matrices rounds every number.

The kernel needs a processor with AVX512-BF16. On a Zen 5 it takes 2.2 ms for 1024³, where the float32 look-ups of
`input_gradient` take 3.9 ms, and torch's bf16 product 4.8 ms.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import WIDTH, float_at, keep, set_float
from bnn_exp.bits.cpu.kernels.vectors_16 import floats_at, ints_at, set_floats, zero_floats
from bnn_exp.bits.cpu.kernels.vectors_bf16 import (
    add_pairs,
    add_times_broadcast,
    indices_of_pairs,
    set_chosen,
    set_rounded,
    shorts_at,
)

GROUP = 5  # numbers whose 32 sums fill a vector
IN_WORD = 6 * GROUP  # bits in a word: three groups in each half of 16 bits
_TABLE = 64  # bytes of a table
_OF_WORD = 6 * _TABLE  # bytes of the tables of a word
_WORDS = 16  # words at a time: their tables for four rows (24 KiB) stay in the first-level cache
_MANY = 64  # words at a time: these words for 1024 outputs (256 KiB) stay in the second-level cache


@kernel
def words_of_30(columns, out):
    """Rearranges packed bits, uint64 [inputs, ⌈bits / 64⌉], for `product`: int32 [inputs / 32, words, 32].

    A word holds 30 bits of one input: the first 15 in its low half, the others in its high half. Bits of inputs beyond those of
    `columns` are 0.
    """
    tiles, words, inputs = out.shape
    low = np.uint64(0x7FFF)
    for k in range(min(len(columns), tiles * inputs)):
        for word in range(words):
            first = word * IN_WORD
            at, shift = first // 64, np.uint64(first % 64)
            bits = columns[k, at] >> shift
            if first % 64 > 64 - IN_WORD and at + 1 < columns.shape[1]:
                bits |= columns[k, at + 1] << (np.uint64(64) - shift)
            out[k // inputs, word, k % inputs] = np.int32((bits & low) | ((bits >> np.uint64(15) & low) << np.uint64(16)))


@kernel
def values_in_bf16(columns, inputs, zero, out):
    """Writes the values of packed bits, uint8 [inputs, bytes], as bfloat16 to `out`, uint16 [inputs, 8 · bytes].

    Args:
        columns: bits whose number in a row is a multiple of 64.
        zero: the bits of the bfloat16 that a bit 0 stands for.
    """
    start, to, row = np.intp(columns.ctypes.data), np.intp(out.ctypes.data), np.intp(columns.shape[1])
    for k in range(inputs):
        for j in range(0, row, 4):
            set_chosen(to + 16 * (k * row + j), start + k * row + j, 0x3F80, zero)


@kernel
def _copy(numbers, count, filled, out):
    """Copies `count` float32 from `numbers` to `out`, and fills `out` with zeros up to `filled` numbers."""
    for i in range(count):
        set_float(out + 4 * i, float_at(numbers + 4 * i))
    for i in range(count, filled):
        set_float(out + 4 * i, np.float32(0))


@kernel
def _set_tables(numbers, groups, factors, out):
    """Stores at `out`, bfloat16 [groups, 32], the 32 sums that 5 bits can make of each group of 5 float32 at `numbers`."""
    a, b, c, d = floats_at(factors), floats_at(factors + 64), floats_at(factors + 128), floats_at(factors + 192)
    zero, one = floats_at(factors + 256), floats_at(factors + 320)
    for _ in range(groups):
        sums = add_times_broadcast(add_times_broadcast(zero_floats(), a, numbers), b, numbers + 4)
        sums = add_times_broadcast(add_times_broadcast(sums, c, numbers + 8), d, numbers + 12)
        set_rounded(out, add_times_broadcast(sums, zero, numbers + 16), add_times_broadcast(sums, one, numbers + 16))
        numbers, out = numbers + 4 * GROUP, out + _TABLE


@kernel
def _added(low, high, table, i, j):
    """Returns `low` and `high` plus the sums that the indices i and j choose from two tables: the one at `table`, and the third
    after it.
    """
    p, q = shorts_at(table), shorts_at(table + 3 * _TABLE)
    return add_pairs(low, p, q, i), add_pairs(high, p, q, j)


@kernel
def _begun(out, new):
    """Returns 32 zeros if `new`, else the 32 float32 at `out`, as two vectors."""
    if new:
        return zero_floats(), zero_floats()
    return floats_at(out), floats_at(out + 64)


@kernel
def product(numbers, row, rows, summands, words, inputs, factors, out):
    """Stores Σ_n G[b, n] · V[n, k], float32 [rows, inputs], at address `out`.

    Args:
        numbers: the address of G, float32 rows of `row` numbers each, of which `summands` count.
        words: the address of the bits of V, as `words_of_30` arranges them.
        inputs: a multiple of 32.
        factors: the address of float32 [6, 16]. Entry (j, i) of the first four rows is the value of bit j of the nibble i. The
            last two rows are the values of a bit 0 and of a bit 1.
    """
    count, last = -(-summands // IN_WORD), rows - 1
    filled, tables = np.empty(IN_WORD * _WORDS, np.float32), np.empty(4 * _WORDS * _OF_WORD, np.uint8)
    copied, start, step = np.intp(filled.ctypes.data), np.intp(tables.ctypes.data), _WORDS * _OF_WORD
    for many in range(0, count, _MANY):
        for r in range(0, rows, 4):
            to, to_1 = out + 4 * inputs * r, out + 4 * inputs * min(r + 1, last)
            to_2, to_3 = out + 4 * inputs * min(r + 2, last), out + 4 * inputs * min(r + 3, last)
            for first in range(many, min(many + _MANY, count), _WORDS):
                some = min(_WORDS, count - first)
                for i in range(4):
                    source = numbers + 4 * (row * min(r + i, last) + IN_WORD * first)
                    if IN_WORD * (first + some) > summands:
                        _copy(source, summands - IN_WORD * first, IN_WORD * some, copied)
                        source = copied
                    _set_tables(source, 6 * some, factors, start + i * step)
                for k in range(0, 4 * inputs, 8 * WIDTH):
                    a, b = _begun(to + k, first == 0)
                    c, d = _begun(to_1 + k, first == 0)
                    e, f = _begun(to_2 + k, first == 0)
                    g, h = _begun(to_3 + k, first == 0)
                    table, word = start, words + k * count + 128 * first
                    for _ in range(some):
                        low, high = ints_at(word), ints_at(word + 64)
                        for field in range(3):
                            i, j = indices_of_pairs(low, field), indices_of_pairs(high, field)
                            at = table + _TABLE * field
                            a, b = _added(a, b, at, i, j)
                            c, d = _added(c, d, at + step, i, j)
                            e, f = _added(e, f, at + 2 * step, i, j)
                            g, h = _added(g, h, at + 3 * step, i, j)
                        table, word = table + _OF_WORD, word + 128
                    _set_two(to + k, a, b)
                    _set_two(to_1 + k, c, d)
                    _set_two(to_2 + k, e, f)
                    _set_two(to_3 + k, g, h)
    keep(filled)
    keep(tables)


@kernel
def _set_two(out, low, high):
    """Stores two vectors of 16 float32 at `out`."""
    set_floats(out, low)
    set_floats(out + 64, high)
