"""Intrinsics of the products of digits with bits (`bnn_exp.bits.cpu.kernels.digits`): look-ups of 64 sums of four digits.

A digit is an integer from −DIGIT to DIGIT, int8. A sum of four digits has OFFSET added, so that it is ≥ 0 and fits in a byte.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_exp.bits.cpu.kernels.llvm import (
    BYTES_64,
    F32,
    FLOATS_64,
    I1,
    I8,
    I32,
    INTS_64,
    LANES,
    SHORTS_32,
    constant,
    declared,
    emitted,
    picked,
    pointer,
    splat,
)

DIGIT = 7
OFFSET = 4 * DIGIT


@intrinsic
def zero_shorts(_typing):
    """Returns 32 zeros, uint16."""
    return emitted(SHORTS_32(), lambda b: ir.Constant(SHORTS_32.ir, None))


@intrinsic
def set_tables(_typing, address, digits, zero):
    """Stores 4 tables of 16 bytes at `address`, one for each 4 of the 16 digits at `digits`.

    Entry i of a table is OFFSET + Σ_j digit_j · v_j, with v_j = 1 where bit j of i is 1 and v_j = `zero`, 0 or −1, elsewhere.
    """

    def codegen(b, address, digits, zero):
        given, negated = b.load(pointer(b, digits, ir.VectorType(I8, 16)), align=1), splat(b, b.trunc(zero, I8))
        sums = constant(BYTES_64, OFFSET)
        for j in range(4):
            digit = picked(b, given, [4 * (lane // 16) + j for lane in range(LANES)])
            one = ir.Constant(ir.VectorType(I1, LANES), [lane % 16 >> j & 1 for lane in range(LANES)])
            sums = b.add(sums, b.select(one, digit, b.and_(negated, b.neg(digit))))
        b.store(sums, pointer(b, address, BYTES_64.ir), align=1)

    return emitted(types.void(types.intp, types.intp, types.intp), codegen)


@intrinsic
def low_nibbles(_typing, weights):
    """Returns the low 4 bits of each of 64 bytes."""
    return emitted(BYTES_64(BYTES_64), lambda b, w: b.and_(w, constant(BYTES_64, 15)))


@intrinsic
def high_nibbles(_typing, weights):
    """Returns the high 4 bits of each of 64 bytes."""
    return emitted(BYTES_64(BYTES_64), lambda b, w: b.lshr(w, constant(BYTES_64, 4)))


@intrinsic
def add_looked_up(_typing, sums, table, nibbles):
    """Returns sums + table[nibble] for each of 64 nibbles, uint8. `table` is the address of 16 bytes."""

    def codegen(b, sums, table, nibbles):
        four_times = picked(b, b.load(pointer(b, table, ir.VectorType(I8, 16)), align=1), [*range(16)] * 4)
        shuffle = declared(b, "llvm.x86.avx512.pshuf.b.512", *[BYTES_64.ir] * 3)
        return b.add(sums, b.call(shuffle, [four_times, nibbles]))

    return emitted(BYTES_64(BYTES_64, types.intp, BYTES_64), codegen)


@intrinsic
def add_even(_typing, total, sums):
    """Returns total, 32 uint16, + bytes 0, 2, 4, … of sums."""

    def codegen(b, total, sums):
        return b.add(total, b.and_(b.bitcast(sums, SHORTS_32.ir), constant(SHORTS_32, 255)))

    return emitted(SHORTS_32(SHORTS_32, BYTES_64), codegen)


@intrinsic
def add_odd(_typing, total, sums):
    """Returns total, 32 uint16, + bytes 1, 3, 5, … of sums."""

    def codegen(b, total, sums):
        return b.add(total, b.lshr(b.bitcast(sums, SHORTS_32.ir), constant(SHORTS_32, 8)))

    return emitted(SHORTS_32(SHORTS_32, BYTES_64), codegen)


@intrinsic
def set_sums(_typing, address, even, odd, offset, base, scale):
    """Stores 64 float32 at `address`: scale · (sum − offset + base · the number stored at this place before).

    `even` and `odd` are the sums of the even and the odd lanes. With base 0 the numbers stored before are not used.
    """

    def codegen(b, address, even, odd, offset, base, scale):
        order = constant(INTS_64, [lane // 2 + lane % 2 * (LANES // 2) for lane in range(LANES)])
        sums = b.zext(b.shuffle_vector(even, odd, order), INTS_64.ir)
        numbers = b.sitofp(b.sub(sums, splat(b, b.trunc(offset, I32))), FLOATS_64.ir)
        place, nothing = pointer(b, address, FLOATS_64.ir), ir.Constant(FLOATS_64.ir, None)
        before = b.select(b.fcmp_ordered("==", base, F32(0.0)), nothing, b.load(place, align=4))
        numbers = b.fadd(numbers, b.fmul(splat(b, base), before))
        b.store(b.fmul(splat(b, scale), numbers), place, align=4)

    return emitted(types.void(types.intp, SHORTS_32, SHORTS_32, types.intp, types.float32, types.float32), codegen)
