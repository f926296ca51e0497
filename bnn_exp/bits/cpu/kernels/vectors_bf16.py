"""Intrinsics on vectors of 32 numbers of 16 bits, and on bfloat16 (AVX512-BF16).

A bfloat16 is the upper half of a float32. Numba and llvmlite have no such type, so it lies in memory as 16 bits.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_exp.bits.cpu.kernels.llvm import (
    F32,
    FLOATS_16,
    I1,
    I32,
    INTS_16,
    SHORTS_32,
    WIDTH,
    constant,
    declared,
    emitted,
    pointer,
    splat,
)

_ONE = 0x3F80  # the bits of the bfloat16 1.0


class _BFloat(ir.Type):
    """LLVM's type bfloat, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BFLOATS_32 = ir.VectorType(_BFloat(), 2 * WIDTH)


@intrinsic
def shorts_at(_typing, address):
    """Returns the 32 numbers of 16 bits at `address`."""
    return emitted(SHORTS_32(types.intp), lambda b, a: b.load(pointer(b, a, SHORTS_32.ir), align=1))


@intrinsic
def set_rounded(_typing, address, low, high):
    """Rounds two vectors of 16 float32 to bfloat16, to nearest, and stores the 32 numbers at `address`, `low` first."""

    def codegen(b, address, low, high):
        convert = declared(b, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", BFLOATS_32, FLOATS_16.ir, FLOATS_16.ir)
        b.store(b.call(convert, [high, low]), pointer(b, address, BFLOATS_32), align=1)

    return emitted(types.void(types.intp, FLOATS_16, FLOATS_16), codegen)


@intrinsic
def set_chosen(_typing, address, mask, one, zero):
    """Stores 32 numbers of 16 bits at `address`: `one` where the bit of the uint32 at address `mask` is 1, else `zero`."""

    def codegen(b, address, mask, one, zero):
        bits = b.bitcast(b.load(pointer(b, mask, I32), align=1), ir.VectorType(I1, 2 * WIDTH))
        ones, zeros = (splat(b, b.trunc(x, SHORTS_32.ir.element), 2 * WIDTH) for x in (one, zero))
        b.store(b.select(bits, ones, zeros), pointer(b, address, SHORTS_32.ir), align=1)

    return emitted(types.void(types.intp, types.intp, types.intp, types.intp), codegen)


@intrinsic
def add_times_broadcast(_typing, sums, numbers, address):
    """Returns sums + numbers · the float32 at `address`, 16 float32 in one rounding."""

    def codegen(b, sums, numbers, address):
        fused = declared(b, "llvm.fma.v16f32", *[FLOATS_16.ir] * 4)
        return b.call(fused, [numbers, splat(b, b.load(pointer(b, address, F32), align=4), WIDTH), sums])

    return emitted(FLOATS_16(FLOATS_16, FLOATS_16, types.intp), codegen)


@intrinsic
def indices_of_pairs(_typing, words, field):
    """Returns the indices of `add_pairs` from field number `field`, 0 to 2, of both halves of 16 int32.

    A half holds three fields of five bits, the lowest first. The index is the field, in the upper half plus 32.
    """

    def codegen(b, words, field):
        shifted = b.lshr(words, splat(b, b.mul(b.trunc(field, I32), I32(5)), WIDTH))
        fields = b.and_(shifted, constant(INTS_16, 0x001F001F))
        return b.bitcast(b.or_(fields, constant(INTS_16, 0x00200000)), SHORTS_32.ir)

    return emitted(SHORTS_32(INTS_16, types.intp), codegen)


@intrinsic
def add_pairs(_typing, sums, low, high, indices):
    """Returns 16 float32: sums + two looked-up bfloat16 in each lane.

    Indices 0 to 31 choose from the table `low`, indices 32 to 63 from `high`. One instruction looks up 32 numbers, another
    multiplies each pair by ones and adds in float32.
    """

    def codegen(b, sums, low, high, indices):
        look_up = declared(b, "llvm.x86.avx512.vpermi2var.hi.512", *[SHORTS_32.ir] * 4)
        add = declared(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS_16.ir, FLOATS_16.ir, BFLOATS_32, BFLOATS_32)
        pairs, ones = b.call(look_up, [low, indices, high]), constant(SHORTS_32, _ONE)
        return b.call(add, [sums, *(b.bitcast(x, BFLOATS_32) for x in (pairs, ones))])

    return emitted(FLOATS_16(FLOATS_16, SHORTS_32, SHORTS_32, SHORTS_32), codegen)
