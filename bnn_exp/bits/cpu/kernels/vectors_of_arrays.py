"""Intrinsics that read and write 16 numbers of an array, float32 or bfloat16, and operations on such vectors.

NumPy has no bfloat16: an array of dtype uint16 holds its bit patterns. Arithmetic is in float32.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_exp.bits.cpu.kernels.llvm import FLOATS_16, I16, INTS_16, WIDTH, constant, emitted, splat

_SHORTS = ir.VectorType(I16, WIDTH)


def _place(context, b, kind, array, index, vector: ir.Type) -> ir.Value:
    """Returns the address of element `index` of a contiguous array, as a pointer to `vector`."""
    data = cgutils.create_struct_proxy(kind)(context, b, array).data
    return b.bitcast(b.gep(data, [index]), vector.as_pointer())


@intrinsic
def numbers_at(_typing, array, index):
    """Returns the 16 numbers of an array from the flat `index` on, float32."""
    short = array.dtype == types.uint16

    def codegen(context, b, _signature, values):
        place = _place(context, b, array, *values, _SHORTS if short else FLOATS_16.ir)
        numbers = b.load(place, align=2 if short else 4)
        if not short:
            return numbers
        return b.bitcast(b.shl(b.zext(numbers, INTS_16.ir), constant(INTS_16, 16)), FLOATS_16.ir)

    return FLOATS_16(array, types.intp), codegen


@intrinsic
def set_numbers(_typing, array, index, numbers):
    """Stores 16 float32 in an array from the flat `index` on. bfloat16 is rounded to the nearest, ties to even, as in torch."""
    short = array.dtype == types.uint16

    def codegen(context, b, _signature, values):
        *where, numbers = values
        place = _place(context, b, array, *where, _SHORTS if short else FLOATS_16.ir)
        b.store(_rounded(b, numbers) if short else numbers, place, align=2 if short else 4)
        return context.get_dummy_value()

    return types.void(array, types.intp, FLOATS_16), codegen


def _rounded(b: ir.IRBuilder, numbers: ir.Value) -> ir.Value:
    """Returns the bit patterns of 16 numbers as bfloat16."""
    bits, sixteen = b.bitcast(numbers, INTS_16.ir), constant(INTS_16, 16)
    odd = b.and_(b.lshr(bits, sixteen), constant(INTS_16, 1))
    rounded = b.lshr(b.add(bits, b.add(odd, constant(INTS_16, 0x7FFF))), sixteen)
    nan = b.fcmp_unordered("uno", numbers, numbers)
    return b.trunc(b.select(nan, constant(INTS_16, 0x7FC0), rounded), _SHORTS)


@intrinsic
def set_bytes(_typing, array, index, numbers):
    """Stores 16 int32 from 0 to 255 in an array of uint8 from the flat `index` on."""

    def codegen(context, b, _signature, values):
        *where, numbers = values
        kind = ir.VectorType(ir.IntType(8), WIDTH)
        b.store(b.trunc(numbers, kind), _place(context, b, array, *where, kind), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, INTS_16), codegen


@intrinsic
def bytes_at(_typing, array, index):
    """Returns the 16 uint8 of an array from the flat `index` on, int32."""

    def codegen(context, b, _signature, values):
        place = _place(context, b, array, *values, ir.VectorType(ir.IntType(8), WIDTH))
        return b.zext(b.load(place, align=1), INTS_16.ir)

    return INTS_16(array, types.intp), codegen


@intrinsic
def times(_typing, x, y):
    """Returns x · y, 16 float32."""
    return emitted(FLOATS_16(FLOATS_16, FLOATS_16), lambda b, x, y: b.fmul(x, y))


@intrinsic
def at_least(_typing, numbers, lowest):
    """Returns the larger of the number and `lowest` in each lane; NaN stays NaN."""
    signature = FLOATS_16(FLOATS_16, FLOATS_16)
    return emitted(signature, lambda b, x, low: b.select(b.fcmp_ordered("<", x, low), low, x))


@intrinsic
def by_sign(_typing, numbers, low, high):
    """Returns `high` where the number is ≥ 0, else `low`."""
    signature, zero = FLOATS_16(FLOATS_16, FLOATS_16, FLOATS_16), ir.Constant(FLOATS_16.ir, None)
    return emitted(signature, lambda b, x, low, high: b.select(b.fcmp_ordered(">=", x, zero), high, low))


@intrinsic
def where_between(_typing, numbers, y, least, most):
    """Returns the number where least ≤ y ≤ most, else 0."""

    def codegen(b, numbers, y, least, most):
        inside = b.and_(b.fcmp_ordered(">=", y, least), b.fcmp_ordered("<=", y, most))
        return b.select(inside, numbers, ir.Constant(FLOATS_16.ir, None))

    return emitted(FLOATS_16(*[FLOATS_16] * 4), codegen)


@intrinsic
def greater_place(_typing, number, largest, place, i):
    """Returns `i` where the number is greater than `largest`, else `place`, 16 int32. NaN is greater than any other number."""

    def codegen(b, number, largest, place, i):
        return b.select(_greater(b, number, largest), splat(b, b.trunc(i, INTS_16.ir.element), WIDTH), place)

    return emitted(INTS_16(FLOATS_16, FLOATS_16, INTS_16, types.intp), codegen)


@intrinsic
def greater(_typing, number, largest):
    """Returns the greater of two numbers in each lane. NaN is greater than any other number."""
    signature = FLOATS_16(FLOATS_16, FLOATS_16)
    return emitted(signature, lambda b, number, largest: b.select(_greater(b, number, largest), number, largest))


def _greater(b: ir.IRBuilder, number: ir.Value, largest: ir.Value) -> ir.Value:
    new = b.and_(b.fcmp_unordered("uno", number, number), b.fcmp_ordered("ord", largest, largest))
    return b.or_(b.fcmp_ordered(">", number, largest), new)


@intrinsic
def place_above(_typing, number, lowest, place, none):
    """Returns `place`, 16 int32, where the number is above `lowest` or NaN, else `none`."""

    def codegen(b, number, lowest, place, none):
        below = b.fcmp_ordered("<=", number, lowest)
        return b.select(below, splat(b, b.trunc(none, INTS_16.ir.element), WIDTH), place)

    return emitted(INTS_16(FLOATS_16, FLOATS_16, INTS_16, types.intp), codegen)


@intrinsic
def where_place(_typing, numbers, others, place, i):
    """Returns the number where the int32 `place` is `i`, else the other number."""

    def codegen(b, numbers, others, place, i):
        there = b.icmp_unsigned("==", place, splat(b, b.trunc(i, INTS_16.ir.element), WIDTH))
        return b.select(there, numbers, others)

    return emitted(FLOATS_16(FLOATS_16, FLOATS_16, INTS_16, types.intp), codegen)
