"""Intrinsics on vectors of 64 lanes: a lane holds a number for one of the 64 outputs of a tile."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_exp.bits.cpu.kernels.llvm import (
    BYTES_64,
    F32,
    FLOATS_64,
    I8,
    I16,
    I32,
    I64,
    INTS_64,
    LANES,
    constant,
    declared,
    emitted,
    picked,
    pointer,
    splat,
)


@intrinsic
def zero_bytes(_typing):
    """Returns 64 zeros, uint8."""
    return emitted(BYTES_64(), lambda b: ir.Constant(BYTES_64.ir, None))


@intrinsic
def zero_ints(_typing):
    """Returns 64 zeros, int32."""
    return emitted(INTS_64(), lambda b: ir.Constant(INTS_64.ir, None))


@intrinsic
def zero_floats(_typing):
    """Returns 64 zeros, float32."""
    return emitted(FLOATS_64(), lambda b: ir.Constant(FLOATS_64.ir, None))


@intrinsic
def bytes_at(_typing, address):
    """Returns the 64 uint8 at `address`."""
    return emitted(BYTES_64(types.intp), lambda b, a: b.load(pointer(b, a, BYTES_64.ir), align=1))


@intrinsic
def add_matches(_typing, counts, weights, x):
    """Returns counts + the number of ones in (weights & the byte at address x), lane by lane, uint8.

    A processor that counts the bits of bytes (AVX-512 BITALG, NEON) takes an and, a population count and an addition. With
    AVX2 alone, one shuffle looks up the counts of 32 nibbles (4 bits) of the weights. Its table holds the number of ones that
    each of the 16 possible nibbles has in common with a nibble of the row.
    """

    def by_counting(b, counts, weights, x):
        count = declared(b, "llvm.ctpop.v64i8", BYTES_64.ir, BYTES_64.ir)
        return b.add(counts, b.call(count, [b.and_(weights, splat(b, b.load(pointer(b, x, I8))))]))

    def by_look_up(b, counts, weights, x):
        shuffle = declared(b, "llvm.x86.avx2.pshuf.b", *[ir.VectorType(I8, 32)] * 3)
        row, low = b.load(pointer(b, x, I8)), constant(BYTES_64, 15)
        high = b.lshr(weights, constant(BYTES_64, 4))
        for nibble, nibbles in ((b.and_(row, I8(15)), b.and_(weights, low)), (b.lshr(row, I8(4)), b.and_(high, low))):
            counts_of = b.load(b.gep(_nibble_counts(b), [I32(0), b.zext(nibble, I32)]), align=16)
            table = picked(b, counts_of, [*range(16)] * 2)
            halves = [b.call(shuffle, [table, picked(b, nibbles, range(at, at + 32))]) for at in (0, 32)]
            counts = b.add(counts, b.shuffle_vector(*halves, constant(INTS_64, range(LANES))))
        return counts

    def codegen(context, b, _signature, values):
        features = context.codegen().magic_tuple()[2].split(",")
        choice = by_look_up if "+avx2" in features and "+avx512bitalg" not in features else by_counting
        return choice(b, *values)

    return BYTES_64(BYTES_64, BYTES_64, types.intp), codegen


def _nibble_counts(b: ir.IRBuilder) -> ir.Value:
    """Returns a constant table [16, 16] of the LLVM module. Entry (i, j) is the number of ones that i and j have in common."""
    row = ir.VectorType(I8, 16)
    if "nibble_counts" not in b.module.globals:
        table = ir.GlobalVariable(b.module, ir.ArrayType(row, 16), "nibble_counts")
        table.linkage, table.global_constant, table.align = "internal", True, 16
        table.initializer = ir.Constant(table.value_type, [[(i & j).bit_count() for j in range(16)] for i in range(16)])
    return b.module.globals["nibble_counts"]


@intrinsic
def widen(_typing, total, counts):
    """Returns total + counts, 64 int32; `total` is 64 int32 and `counts` 64 uint8."""
    return emitted(INTS_64(INTS_64, BYTES_64), lambda b, total, counts: b.add(total, b.zext(counts, INTS_64.ir)))


@intrinsic
def scale_and_shift(_typing, numbers, scale, shift):
    """Returns scale · numbers + shift, 64 int32."""

    def codegen(b, numbers, scale, shift):
        return b.add(b.mul(numbers, splat(b, b.trunc(scale, I32))), splat(b, b.trunc(shift, I32)))

    return emitted(INTS_64(INTS_64, types.intp, types.intp), codegen)


@intrinsic
def scale_and_shift_floats(_typing, numbers, scale, shift):
    """Returns scale · numbers + shift, 64 float32."""

    def codegen(b, numbers, scale, shift):
        return b.fadd(b.fmul(numbers, splat(b, scale)), splat(b, shift))

    return emitted(FLOATS_64(FLOATS_64, types.float32, types.float32), codegen)


@intrinsic
def add_where_one(_typing, sums, weights, x):
    """Returns sums + the float32 at x + 4k in the lanes whose weight byte has a 1 at bit k, for k = 0 … 7."""

    def codegen(b, sums, weights, x):
        for k in range(8):
            number = b.load(pointer(b, b.add(x, I64(4 * k)), F32), align=4)
            mask = b.icmp_unsigned("!=", b.and_(weights, constant(BYTES_64, 1 << k)), ir.Constant(BYTES_64.ir, None))
            sums = b.select(mask, b.fadd(sums, splat(b, number)), sums)
        return sums

    return emitted(FLOATS_64(FLOATS_64, BYTES_64, types.intp), codegen)


@intrinsic
def store(_typing, address, numbers):
    """Stores 64 int32 or float32 at `address`."""
    return emitted(types.void(types.intp, numbers), lambda b, a, n: b.store(n, pointer(b, a, numbers.ir), align=4))


@intrinsic
def store_shorts(_typing, address, numbers):
    """Stores 64 int32 as int16 at `address`."""

    def codegen(b, address, numbers):
        shorts = ir.VectorType(I16, LANES)
        b.store(b.trunc(numbers, shorts), pointer(b, address, shorts), align=2)

    return emitted(types.void(types.intp, INTS_64), codegen)


@intrinsic
def store_steps(_typing, address, numbers, thresholds, inverted):
    """Stores at `address` the 64 bits 1[number ≥ threshold], each inverted where a bit of `inverted` is 1.

    `thresholds` is the address of 64 int32, `inverted` that of 64 packed bits.
    """

    def codegen(b, address, numbers, thresholds, inverted):
        steps = b.icmp_signed(">=", numbers, b.load(pointer(b, thresholds, INTS_64.ir), align=4))
        bits = b.xor(b.bitcast(steps, I64), b.load(pointer(b, inverted, I64), align=1))
        b.store(bits, pointer(b, address, I64), align=1)

    return emitted(types.void(types.intp, INTS_64, types.intp, types.intp), codegen)


@intrinsic
def store_planes(_typing, address, step, numbers):
    """Stores bit p of each of the 64 bytes at `numbers`, 8 packed bytes, at address + p · step, for p = 0 … 7."""

    def codegen(b, address, step, numbers):
        bytes_ = b.load(pointer(b, numbers, BYTES_64.ir), align=1)
        for p in range(8):
            first = b.shl(bytes_, constant(BYTES_64, 7 - p))
            bits = b.bitcast(b.icmp_signed("<", first, ir.Constant(BYTES_64.ir, None)), I64)
            b.store(bits, pointer(b, b.add(address, b.mul(step, I64(p))), I64), align=1)

    return emitted(types.void(types.intp, types.intp, types.intp), codegen)
