"""The vector types of the kernels, helpers that emit LLVM instructions, and intrinsics on single numbers and on bytes.

Numba has no vector types, so intrinsics emit LLVM's vector instructions. LLVM splits a vector into the registers that the
processor has, so one source serves every processor.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from bnn_exp.bits.reference import LANES

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()


class Vector(types.Type):
    """A numba type: a vector of `lanes` numbers, each of the LLVM type `element`."""

    def __init__(self, element: ir.Type, lanes: int):
        self.ir = ir.VectorType(element, lanes)
        super().__init__(name=f"Vector({lanes} x {element})")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.ir)


BYTES_64, INTS_64, FLOATS_64 = (Vector(element, LANES) for element in (I8, I32, F32))  # one number for each output of a tile
SHORTS_32 = Vector(I16, LANES // 2)
WIDTH = 16  # numbers of 32 bits in a register of AVX-512
INTS_16, FLOATS_16 = Vector(I32, WIDTH), Vector(F32, WIDTH)


def emitted(signature, codegen: Callable) -> tuple:
    """Returns the pair that numba expects from an @intrinsic function.

    Args:
        signature: numba's signature of the intrinsic.
        codegen: called as codegen(builder, *values); emits the instructions and returns their result, an LLVM value.
    """

    def call(context, b, _signature, values):
        result = codegen(b, *values)
        return context.get_dummy_value() if signature.return_type == types.void else result

    return signature, call


def constant(kind: Vector, values: int | Sequence[int]) -> ir.Constant:
    """Returns the constant vector of type `kind` that holds `values`. A single integer fills every lane."""
    return ir.Constant(kind.ir, [values] * kind.ir.count if isinstance(values, int) else list(values))


def splat(b: ir.IRBuilder, value: ir.Value, lanes: int = LANES) -> ir.Value:
    """Returns a vector with `value` in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    zero = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return b.shuffle_vector(b.insert_element(undefined, value, I32(0)), undefined, zero)


def picked(b: ir.IRBuilder, vector: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """Returns the vector of the given lanes of `vector`, in that order; a lane may occur several times."""
    indices = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), indices)


def pointer(b: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """Returns the address, an integer, as a pointer to `kind`."""
    return b.inttoptr(address, kind.as_pointer())


def declared(b: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Value:
    """Returns LLVM's own function `name`, declared in the current module with these types of result and arguments."""
    return cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), name)


@intrinsic
def byte_at(_typing, address):
    """Returns the uint8 at `address`."""
    return emitted(types.intp(types.intp), lambda b, a: b.zext(b.load(pointer(b, a, I8)), I64))


@intrinsic
def int_at(_typing, address):
    """Returns the uint32 at `address`."""
    return emitted(types.intp(types.intp), lambda b, a: b.zext(b.load(pointer(b, a, I32), align=1), I64))


@intrinsic
def signed_at(_typing, address):
    """Returns the int32 at `address`."""
    return emitted(types.intp(types.intp), lambda b, a: b.sext(b.load(pointer(b, a, I32), align=4), I64))


@intrinsic
def word_at(_typing, address):
    """Returns the int64 at `address`."""
    return emitted(types.intp(types.intp), lambda b, a: b.load(pointer(b, a, I64), align=1))


@intrinsic
def float_at(_typing, address):
    """Returns the float32 at `address`."""
    return emitted(types.float32(types.intp), lambda b, a: b.load(pointer(b, a, F32), align=4))


@intrinsic
def half_at(_typing, address):
    """Returns the bfloat16 at `address` as float32."""

    def codegen(b, address):
        upper = b.zext(b.load(pointer(b, address, I16), align=2), I32)
        return b.bitcast(b.shl(upper, I32(16)), F32)

    return emitted(types.float32(types.intp), codegen)


@intrinsic
def set_byte(_typing, address, value):
    """Stores `value` as uint8 at `address`."""
    return emitted(types.void(types.intp, types.intp), lambda b, a, v: b.store(b.trunc(v, I8), pointer(b, a, I8)))


@intrinsic
def set_int(_typing, address, value):
    """Stores `value` as int32 at `address`."""
    return emitted(types.void(types.intp, types.intp), lambda b, a, v: b.store(b.trunc(v, I32), pointer(b, a, I32), align=4))


@intrinsic
def set_word(_typing, address, value):
    """Stores an int64 at `address`."""
    return emitted(types.void(types.intp, types.intp), lambda b, a, v: b.store(v, pointer(b, a, I64), align=1))


@intrinsic
def set_float(_typing, address, number):
    """Stores a float32 at `address`."""
    return emitted(types.void(types.intp, types.float32), lambda b, a, n: b.store(n, pointer(b, a, F32), align=4))


_EIGHT_BITS, _EIGHT_FLOATS = ir.VectorType(I1, 8), ir.VectorType(F32, 8)


@intrinsic
def set_signs(_typing, address, bits):
    """Stores 8 float32 at `address`: 1 for each 1 of the 8 bits at address `bits`, else −1."""

    def codegen(b, address, bits):
        one, minus = (ir.Constant(_EIGHT_FLOATS, [x] * 8) for x in (1.0, -1.0))
        mask = b.bitcast(b.load(pointer(b, bits, I8)), _EIGHT_BITS)
        b.store(b.select(mask, one, minus), pointer(b, address, _EIGHT_FLOATS), align=4)

    return emitted(types.void(types.intp, types.intp), codegen)


@intrinsic
def flip_marked(_typing, bits, marks):
    """Flips each of the 8 bits at address `bits` whose float32 at `marks` is not 0. Returns the number of flips."""

    def codegen(b, bits, marks):
        marked = b.fcmp_ordered("!=", b.load(pointer(b, marks, _EIGHT_FLOATS), align=4), ir.Constant(_EIGHT_FLOATS, None))
        changes, at = b.bitcast(marked, I8), pointer(b, bits, I8)
        b.store(b.xor(b.load(at), changes), at)
        return b.ctpop(b.zext(changes, I64))

    return emitted(types.intp(types.intp, types.intp), codegen)


@intrinsic
def flip_different(_typing, bits, numbers, threshold):
    """Sets the 8 bits at address `bits` to 1[x > threshold] for the 8 float32 x at `numbers`. Returns the number of flips."""

    def codegen(b, bits, numbers, threshold):
        vector, limit = b.load(pointer(b, numbers, _EIGHT_FLOATS), align=4), splat(b, threshold, 8)
        above, at = b.bitcast(b.fcmp_ordered(">", vector, limit), I8), pointer(b, bits, I8)
        changes = b.xor(b.load(at), above)
        b.store(above, at)
        return b.ctpop(b.zext(changes, I64))

    return emitted(types.intp(types.intp, types.intp, types.float32), codegen)


@intrinsic
def below_among_64(_typing, numbers, limit):
    """Returns 64 bits: 1[x < limit] for the 64 float32 x at address `numbers`, the first as the lowest bit."""

    def codegen(b, numbers, limit):
        vector = b.load(pointer(b, numbers, ir.VectorType(F32, 64)), align=4)
        return b.bitcast(b.fcmp_ordered("<", vector, splat(b, limit, 64)), I64)

    return emitted(types.intp(types.intp, types.float32), codegen)


@intrinsic
def lowest_one(_typing, value):
    """Returns the place of the lowest bit of an int64 that is 1, from 0. The value must not be 0."""
    return emitted(types.intp(types.intp), lambda b, v: b.cttz(v, ir.Constant(I1, 1)))


@intrinsic
def ones(_typing, value):
    """Returns the number of bits that are 1 in an int64."""
    return emitted(types.intp(types.intp), lambda b, v: b.ctpop(v))


@intrinsic
def keep(_typing, array):
    """Does nothing, at the end of a kernel that uses the address of an array of its own.

    Numba frees an array after the last line that names the array, and knows nothing of its address.
    """
    return emitted(types.void(array), lambda b, a: None)


@intrinsic
def copy(_typing, address, source, count):
    """Copies `count` bytes from `source` to `address`."""

    def codegen(b, address, source, count):
        cgutils.raw_memcpy(b, pointer(b, address, I8), pointer(b, source, I8), count, 1)

    return emitted(types.void(types.intp, types.intp, types.intp), codegen)


@intrinsic
def clear(_typing, address, count):
    """Sets `count` bytes at `address` to 0."""

    def codegen(b, address, count):
        cgutils.memset(b, pointer(b, address, I8), count, 0)

    return emitted(types.void(types.intp, types.intp), codegen)
