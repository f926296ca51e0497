"""The products of bits on a CPU, by numba: 64 outputs at a time, one bit of each in every byte lane of a vector.

The vectors are LLVM's, so that one text serves every processor: LLVM splits them into the registers there are. A step takes
one byte of a row (8 inputs) and the 64 bytes that 64 outputs have there, and counts the inputs that both have. Where the
processor counts the bits of bytes (AVX-512 BITALG, NEON) that is and, popcount, add; with AVX2 it is the nibble look-up: the
counts of all 16 nibbles against a nibble of the row are one register, and a byte shuffle looks 32 of them up at once.

Arguments of kernels are addresses and sizes: to make numba see eight arrays takes longer than a layer of 1024² bits.
Vectors and kernels share a file because numba's cache watches the file of the kernel alone.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from bnn_exp.bits.reference import LANES

_STEPS = 31  # that a byte holds the counts of: 31 · 8 ≤ 255
_ROWS = 256  # of bits at a time: their int16 sums (512 KiB for 1024 outputs) stay in the second cache
_BLOCK = 16  # rows of pixels at a time: their bits stay in the first cache

_i8, _i32, _i64, _f32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


class _Vector(types.Type):
    """A number for each of the LANES outputs of a tile, in registers."""

    def __init__(self, element: ir.Type):
        self.ir = ir.VectorType(element, LANES)
        super().__init__(name=f"Vector({element})")


class _Bytes(_Vector):
    pass


class _Ints(_Vector):
    pass


class _Floats(_Vector):
    pass


BYTES, INTS, FLOATS = _Bytes(_i8), _Ints(_i32), _Floats(_f32)


@register_model(_Bytes)
@register_model(_Ints)
@register_model(_Floats)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.ir)


def _compiled(function):
    """`function` by numba, which keeps what it made of it beside this file or in the user's cache, where it may write."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere
        return njit(nogil=True)(function)


def _all(b: ir.IRBuilder, value: ir.Value, lanes: int = LANES) -> ir.Value:
    """A vector with `value` in every lane."""
    some = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    zero = ir.Constant(ir.VectorType(_i32, lanes), [0] * lanes)
    return b.shuffle_vector(b.insert_element(some, value, _i32(0)), some, zero)


def _lanes(b: ir.IRBuilder, vector: ir.Value, lanes: list[int]) -> ir.Value:
    indices = ir.Constant(ir.VectorType(_i32, len(lanes)), lanes)
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), indices)


def _at(b: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    return b.inttoptr(address, kind.as_pointer())


def _function(b: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Value:
    return cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), name)


def _emit(signature, codegen):
    """What an @intrinsic returns, from codegen(builder, *values)."""

    def call(context, b, _signature, values):
        result = codegen(b, *values)
        return context.get_dummy_value() if signature.return_type == types.void else result

    return signature, call


@intrinsic
def no_bytes(_typing):
    return _emit(BYTES(), lambda b: ir.Constant(BYTES.ir, None))


@intrinsic
def no_ints(_typing):
    return _emit(INTS(), lambda b: ir.Constant(INTS.ir, None))


@intrinsic
def no_floats(_typing):
    return _emit(FLOATS(), lambda b: ir.Constant(FLOATS.ir, None))


@intrinsic
def bytes_at(_typing, address):
    return _emit(BYTES(types.intp), lambda b, a: b.load(_at(b, a, BYTES.ir), align=1))


@intrinsic
def add_matches(_typing, counts, weights, x):
    """counts + the number of ones of (weights & the byte at address x)."""

    def popcount(b, counts, weights, x):
        count = _function(b, "llvm.ctpop.v64i8", BYTES.ir, BYTES.ir)
        return b.add(counts, b.call(count, [b.and_(weights, _all(b, b.load(_at(b, x, _i8))))]))

    def look_up(b, counts, weights, x):
        shuffle = _function(b, "llvm.x86.avx2.pshuf.b", *[ir.VectorType(_i8, 32)] * 3)
        row, low = b.load(_at(b, x, _i8)), ir.Constant(BYTES.ir, [15] * LANES)
        high = b.lshr(weights, ir.Constant(BYTES.ir, [4] * LANES))
        for nibble, nibbles in ((b.and_(row, _i8(15)), b.and_(weights, low)), (b.lshr(row, _i8(4)), b.and_(high, low))):
            counts_of = b.load(b.gep(_nibble_counts(b), [_i32(0), b.zext(nibble, _i32)]), align=16)
            table = _lanes(b, counts_of, [*range(16)] * 2)
            halves = [b.call(shuffle, [table, _lanes(b, nibbles, [*range(at, at + 32)])]) for at in (0, 32)]
            both = ir.Constant(ir.VectorType(_i32, LANES), [*range(LANES)])
            counts = b.add(counts, b.shuffle_vector(*halves, both))
        return counts

    def codegen(context, b, _signature, values):
        features = context.codegen().magic_tuple()[2].split(",")
        choice = look_up if "+avx2" in features and "+avx512bitalg" not in features else popcount
        return choice(b, *values)

    return BYTES(BYTES, BYTES, types.intp), codegen


def _nibble_counts(b: ir.IRBuilder) -> ir.Value:
    """The constant [16][16]: how many ones a nibble has in common with a nibble."""
    row = ir.VectorType(_i8, 16)
    if "nibble_counts" not in b.module.globals:
        table = ir.GlobalVariable(b.module, ir.ArrayType(row, 16), "nibble_counts")
        table.linkage, table.global_constant, table.align = "internal", True, 16
        table.initializer = ir.Constant(table.value_type, [[(i & j).bit_count() for j in range(16)] for i in range(16)])
    return b.module.globals["nibble_counts"]


@intrinsic
def widen(_typing, total, counts):
    """total + counts"""
    return _emit(INTS(INTS, BYTES), lambda b, total, counts: b.add(total, b.zext(counts, INTS.ir)))


@intrinsic
def add_shifted(_typing, low, high, shift):
    """low + high · 2^shift"""
    return _emit(INTS(INTS, INTS, types.intp), lambda b, x, y, s: b.add(x, b.shl(y, _all(b, b.trunc(s, _i32)))))


@intrinsic
def scale_and_shift(_typing, numbers, scale, shift):
    """scale · numbers + shift"""

    def codegen(b, numbers, scale, shift):
        return b.add(b.mul(numbers, _all(b, b.trunc(scale, _i32))), _all(b, b.trunc(shift, _i32)))

    return _emit(INTS(INTS, types.intp, types.intp), codegen)


@intrinsic
def store(_typing, address, numbers):
    return _emit(types.void(types.intp, numbers), lambda b, a, n: b.store(n, _at(b, a, numbers.ir), align=4))


@intrinsic
def store_shorts(_typing, address, numbers):
    """The numbers as int16 go to address."""

    def codegen(b, address, numbers):
        shorts = ir.VectorType(ir.IntType(16), LANES)
        b.store(b.trunc(numbers, shorts), _at(b, address, shorts), align=2)

    return _emit(types.void(types.intp, INTS), codegen)


@intrinsic
def store_steps(_typing, address, numbers, thresholds, flips):
    """The 64 bits 1[numbers ≥ the int32 at `thresholds`], each flipped where a bit at `flips` is 1, go to address."""

    def codegen(b, address, numbers, thresholds, flips):
        steps = b.icmp_signed(">=", numbers, b.load(_at(b, thresholds, INTS.ir), align=4))
        flipped = b.xor(b.bitcast(steps, _i64), b.load(_at(b, flips, _i64), align=1))
        b.store(flipped, _at(b, address, _i64), align=1)

    return _emit(types.void(types.intp, INTS, types.intp, types.intp), codegen)


@intrinsic
def add_where_one(_typing, sums, weights, x):
    """sums + the float32 at x + 4k where bit k of the weights' bytes is 1, for k = 0 … 7."""

    def codegen(b, sums, weights, x):
        for k in range(8):
            number = b.load(_at(b, b.add(x, _i64(4 * k)), _f32), align=4)
            mask = b.icmp_unsigned("!=", b.and_(weights, ir.Constant(BYTES.ir, [1 << k] * LANES)), ir.Constant(BYTES.ir, None))
            sums = b.select(mask, b.fadd(sums, _all(b, number)), sums)
        return sums

    return _emit(FLOATS(FLOATS, BYTES, types.intp), codegen)


@intrinsic
def scale_and_shift_floats(_typing, numbers, scale, shift):
    """scale · numbers + shift"""

    def codegen(b, numbers, scale, shift):
        return b.fadd(b.fmul(numbers, _all(b, scale)), _all(b, shift))

    return _emit(FLOATS(FLOATS, types.float32, types.float32), codegen)


@intrinsic
def byte_at(_typing, address):
    return _emit(types.intp(types.intp), lambda b, a: b.zext(b.load(_at(b, a, _i8)), _i64))


@intrinsic
def word_at(_typing, address):
    return _emit(types.intp(types.intp), lambda b, a: b.load(_at(b, a, _i64), align=1))


@intrinsic
def plane(_typing, word, p):
    """Bits p of the 8 bytes of a word, as one byte: the product moves bit 8i to bit 56 + i."""

    def codegen(b, word, p):
        bits = b.and_(b.lshr(word, p), _i64(0x0101010101010101))
        return b.lshr(b.mul(bits, _i64(0x0102040810204080)), _i64(56))

    return _emit(types.intp(types.intp, types.intp), codegen)


@intrinsic
def set_planes(_typing, address, step, numbers):
    """Bits p of the 64 bytes at `numbers` go to address + p · step, 8 bytes, for p = 0 … 7."""

    def codegen(b, address, step, numbers):
        bytes_ = b.load(_at(b, numbers, BYTES.ir), align=1)
        for p in range(8):
            first = b.shl(bytes_, ir.Constant(BYTES.ir, [7 - p] * LANES))
            bits = b.bitcast(b.icmp_signed("<", first, ir.Constant(BYTES.ir, None)), _i64)
            b.store(bits, _at(b, b.add(address, b.mul(step, _i64(p))), _i64), align=1)

    return _emit(types.void(types.intp, types.intp, types.intp), codegen)


@intrinsic
def set_byte(_typing, address, value):
    return _emit(types.void(types.intp, types.intp), lambda b, a, v: b.store(b.trunc(v, _i8), _at(b, a, _i8)))


@intrinsic
def float_at(_typing, address):
    return _emit(types.float32(types.intp), lambda b, a: b.load(_at(b, a, _f32), align=4))


@intrinsic
def ones(_typing, value):
    return _emit(types.intp(types.intp), lambda b, v: b.ctpop(v))


@_compiled
def _one(x, tile, columns):
    """How many ones each output of the tile has in common with the row at x."""
    total = no_ints()
    while columns > 0:
        run = min(columns, _STEPS)
        columns -= run
        counts = no_bytes()
        for _ in range(run):
            counts = add_matches(counts, bytes_at(tile), x)
            x, tile = x + 1, tile + LANES
        total = widen(total, counts)
    return total


@_compiled
def _four(x, row, tile, columns):
    """As `_one` for four rows, `row` bytes apart."""
    p, q, r, s = no_ints(), no_ints(), no_ints(), no_ints()
    while columns > 0:
        run = min(columns, _STEPS)
        columns -= run
        a, b, c, d = no_bytes(), no_bytes(), no_bytes(), no_bytes()
        for _ in range(run):
            weights = bytes_at(tile)
            a = add_matches(a, weights, x)
            b = add_matches(b, weights, x + row)
            c = add_matches(c, weights, x + 2 * row)
            d = add_matches(d, weights, x + 3 * row)
            x, tile = x + 1, tile + LANES
        p, q, r, s = widen(p, a), widen(q, b), widen(r, c), widen(s, d)
    return p, q, r, s


@_compiled
def _ones(x, columns):
    total = 0
    for i in range(columns):
        total += ones(byte_at(x + i))
    return total


@_compiled
def _finish(matches, x_total, zero, group, thresholds, flips, out):
    """The sums Σ x·w of a group, w = 1 or `zero`, go to the row at `out`; their steps where there are thresholds."""
    sums = scale_and_shift(matches, 1 - zero, zero * x_total)
    if thresholds:
        store_steps(out + 8 * group, sums, thresholds + 4 * LANES * group, flips + 8 * group)
    else:
        store(out + 4 * LANES * group, sums)


@_compiled
def bit_product(x, row, rows, tiles, columns, first, last, zero, thresholds, flips, out, out_row):
    """Groups `first` to `last` of the sums (or steps) of `rows` rows of bits. Sizes `row` and `out_row` are in bytes."""
    totals = np.empty(rows, np.int64)
    for r in range(rows):
        totals[r] = _ones(x + r * row, columns)
    fours = rows // 4 * 4
    for g in range(first, last):
        tile = tiles + g * columns * LANES
        for r in range(0, fours, 4):
            a, b, c, d = _four(x + r * row, row, tile, columns)
            to = out + r * out_row
            _finish(a, totals[r], zero, g, thresholds, flips, to)
            _finish(b, totals[r + 1], zero, g, thresholds, flips, to + out_row)
            _finish(c, totals[r + 2], zero, g, thresholds, flips, to + 2 * out_row)
            _finish(d, totals[r + 3], zero, g, thresholds, flips, to + 3 * out_row)
        for r in range(fours, rows):
            _finish(_one(x + r * row, tile, columns), totals[r], zero, g, thresholds, flips, out + r * out_row)


@_compiled
def bit_shorts(x, row, rows, tiles, columns, groups, zero, out):
    """All sums of `rows` rows of bits as int16 [rows, 64 · groups]."""
    out_row = 2 * LANES * groups
    for first in range(0, rows, _ROWS):
        size = min(_ROWS, rows - first)
        totals = np.empty(size, np.int64)
        for r in range(size):
            totals[r] = _ones(x + (first + r) * row, columns)
        for g in range(groups):
            tile, at, to = tiles + g * columns * LANES, x + first * row, out + first * out_row + 2 * LANES * g
            for r in range(0, size // 4 * 4, 4):
                a, b, c, d = _four(at + r * row, row, tile, columns)
                store_shorts(to + r * out_row, scale_and_shift(a, 1 - zero, zero * totals[r]))
                store_shorts(to + (r + 1) * out_row, scale_and_shift(b, 1 - zero, zero * totals[r + 1]))
                store_shorts(to + (r + 2) * out_row, scale_and_shift(c, 1 - zero, zero * totals[r + 2]))
                store_shorts(to + (r + 3) * out_row, scale_and_shift(d, 1 - zero, zero * totals[r + 3]))
            for r in range(size // 4 * 4, size):
                a = _one(at + r * row, tile, columns)
                store_shorts(to + r * out_row, scale_and_shift(a, 1 - zero, zero * totals[r]))


@_compiled
def _take_planes(x, pixels, planes, columns):
    """The bits p of the pixels at x become row p of `planes`, uint8 [8, columns], the last byte filled with 0."""
    for j in range(pixels // 8):
        word = word_at(x + 8 * j)
        for p in range(8):
            set_byte(planes + p * columns + j, plane(word, p))
    if pixels % 8:
        for p in range(8):
            last = 0
            for k in range(pixels % 8):
                last |= (byte_at(x + pixels // 8 * 8 + k) >> p & 1) << k
            set_byte(planes + p * columns + columns - 1, last)


@_compiled
def pixel_product(x, row, rows, tiles, columns, first, last, zero, thresholds, flips, out, out_row):
    """As `bit_product` for rows of `row` pixels: Σ 2^p · (the matches of the bits p of the pixels)."""
    planes = np.empty((_BLOCK, 8, columns), np.uint8)
    start, step = np.intp(planes.ctypes.data), 8 * columns  # numba has it unsigned: its sum with an integer would be a float
    totals = np.empty(_BLOCK, np.int64)
    for begin in range(0, rows, _BLOCK):
        block = min(_BLOCK, rows - begin)
        for r in range(block):
            _take_planes(x + (begin + r) * row, row, start + r * step, columns)
            totals[r] = 0
            for p in range(8):
                totals[r] += _ones(start + r * step + p * columns, columns) << p
        for g in range(first, last):
            tile = tiles + g * columns * LANES
            for r in range(block):
                a, b, c, d = _four(start + r * step, columns, tile, columns)
                low = add_shifted(add_shifted(a, b, 1), add_shifted(c, d, 1), 2)
                a, b, c, d = _four(start + r * step + 4 * columns, columns, tile, columns)
                high = add_shifted(add_shifted(a, b, 1), add_shifted(c, d, 1), 2)
                total, to = totals[r], out + (begin + r) * out_row
                _finish(add_shifted(low, high, 4), total, zero, g, thresholds, flips, to)


@_compiled
def real_product(x, row, rows, tiles, columns, first, last, zero, one, out, out_row):
    """Groups `first` to `last` of Σ x·w for `rows` rows of 8 · `columns` float32, w = `one` or `zero`."""
    for r in range(rows):
        total = np.float32(0)
        for i in range(8 * columns):
            total += float_at(x + r * row + 4 * i)
        for g in range(first, last):
            sums = no_floats()
            for j in range(columns):
                sums = add_where_one(sums, bytes_at(tiles + (g * columns + j) * LANES), x + r * row + 32 * j)
            store(out + r * out_row + 4 * LANES * g, scale_and_shift_floats(sums, one - zero, zero * total))
