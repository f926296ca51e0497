"""Intrinsics on vectors of 16 lanes, each of 32 bits: 16 rows of a batch, or 16 columns of a matrix."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_exp.bits.cpu.kernels.llvm import (
    F32,
    FLOATS_16,
    I1,
    I8,
    I16,
    I32,
    I64,
    INTS_16,
    WIDTH,
    constant,
    declared,
    emitted,
    pointer,
    splat,
)

_TWO = FLOATS_16(FLOATS_16, FLOATS_16)  # numba's signature of an operation on two vectors


def _fused(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Returns x · y + z in one rounding."""
    return b.call(declared(b, "llvm.fma.v16f32", *[FLOATS_16.ir] * 4), [x, y, z])


@intrinsic
def zero_floats(_typing):
    """Returns 16 zeros, float32."""
    return emitted(FLOATS_16(), lambda b: ir.Constant(FLOATS_16.ir, None))


@intrinsic
def zero_ints(_typing):
    """Returns 16 zeros, int32."""
    return emitted(INTS_16(), lambda b: ir.Constant(INTS_16.ir, None))


@intrinsic
def repeated(_typing, number):
    """Returns a vector with the float32 `number` in all 16 lanes."""
    return emitted(FLOATS_16(types.float32), lambda b, x: splat(b, x, WIDTH))


@intrinsic
def floats_at(_typing, address):
    """Returns the 16 float32 at `address`."""
    return emitted(FLOATS_16(types.intp), lambda b, a: b.load(pointer(b, a, FLOATS_16.ir), align=4))


@intrinsic
def ints_at(_typing, address):
    """Returns the 16 int32 at `address`."""
    return emitted(INTS_16(types.intp), lambda b, a: b.load(pointer(b, a, INTS_16.ir), align=4))


@intrinsic
def shorts_at(_typing, address):
    """Returns the 16 int16 at `address` as float32."""

    def codegen(b, address):
        shorts = b.load(pointer(b, address, ir.VectorType(I16, WIDTH)), align=2)
        return b.sitofp(b.sext(shorts, INTS_16.ir), FLOATS_16.ir)

    return emitted(FLOATS_16(types.intp), codegen)


@intrinsic
def as_floats(_typing, numbers):
    """Returns 16 int32 as float32."""
    return emitted(FLOATS_16(INTS_16), lambda b, n: b.sitofp(n, FLOATS_16.ir))


@intrinsic
def set_floats(_typing, address, numbers):
    """Stores 16 float32 at `address`."""
    return emitted(types.void(types.intp, FLOATS_16), lambda b, a, n: b.store(n, pointer(b, a, FLOATS_16.ir), align=4))


@intrinsic
def set_not_negative(_typing, address, numbers):
    """Stores the 16 bits 1[number ≥ 0], packed, at `address`."""

    def codegen(b, address, numbers):
        bits = b.fcmp_ordered(">=", numbers, ir.Constant(FLOATS_16.ir, None))
        b.store(b.bitcast(bits, I16), pointer(b, address, I16), align=1)

    return emitted(types.void(types.intp, FLOATS_16), codegen)


@intrinsic
def set_used(_typing, address, x, y, first):
    """Stores `first` + i, int32, for the i in 0 … 15 whose int32 at x + 4i or at y + 4i is not 0; returns the number of them.

    The stored integers stand one after the other from `address` on. The rest of the 64 bytes from `address` on becomes 0.
    """

    def codegen(b, address, x, y, first):
        both = b.or_(*(b.load(pointer(b, a, INTS_16.ir), align=1) for a in (x, y)))
        used = b.icmp_unsigned("!=", both, ir.Constant(INTS_16.ir, None))
        numbers = b.add(splat(b, b.trunc(first, I32), WIDTH), constant(INTS_16, range(WIDTH)))
        compress = declared(b, "llvm.x86.avx512.mask.compress.v16i32", INTS_16.ir, INTS_16.ir, INTS_16.ir, used.type)
        compressed = b.call(compress, [numbers, ir.Constant(INTS_16.ir, None), used])
        b.store(compressed, pointer(b, address, INTS_16.ir), align=4)
        return b.zext(b.ctpop(b.bitcast(used, I16)), I64)

    return emitted(types.intp(types.intp, types.intp, types.intp, types.intp), codegen)


@intrinsic
def plus(_typing, x, y):
    """Returns x + y, 16 float32."""
    return emitted(_TWO, lambda b, x, y: b.fadd(x, y))


@intrinsic
def minus(_typing, x, y):
    """Returns x − y, 16 float32."""
    return emitted(_TWO, lambda b, x, y: b.fsub(x, y))


@intrinsic
def over(_typing, x, y):
    """Returns x / y, 16 float32."""
    return emitted(_TWO, lambda b, x, y: b.fdiv(x, y))


@intrinsic
def times_plus(_typing, x, y, z):
    """Returns x · y + z in one rounding, 16 float32."""
    return emitted(FLOATS_16(FLOATS_16, FLOATS_16, FLOATS_16), _fused)


@intrinsic
def add_where(_typing, sums, numbers, bits):
    """Returns sums + numbers in the lanes whose bit, of the 16 at address `bits`, is 1; elsewhere sums."""

    def codegen(b, sums, numbers, bits):
        mask = b.bitcast(b.load(pointer(b, bits, I16), align=1), ir.VectorType(I1, WIDTH))
        return b.select(mask, b.fadd(sums, numbers), sums)

    return emitted(FLOATS_16(FLOATS_16, FLOATS_16, types.intp), codegen)


@intrinsic
def add_times(_typing, sums, numbers, factor):
    """Returns sums + numbers · factor in one rounding; `factor` is a single float32."""
    signature = FLOATS_16(FLOATS_16, FLOATS_16, types.float32)
    return emitted(signature, lambda b, sums, numbers, factor: _fused(b, numbers, splat(b, factor, WIDTH), sums))


@intrinsic
def add_times_bytes(_typing, sums, numbers, pixels):
    """Returns sums + numbers · the 16 uint8 at address `pixels`, in one rounding."""

    def codegen(b, sums, numbers, pixels):
        bytes_ = b.load(pointer(b, pixels, ir.VectorType(I8, WIDTH)), align=1)
        return _fused(b, b.sitofp(b.zext(bytes_, INTS_16.ir), FLOATS_16.ir), numbers, sums)

    return emitted(FLOATS_16(FLOATS_16, FLOATS_16, types.intp), codegen)


@intrinsic
def add_products(_typing, sums, x, weights):
    """Returns 16 int32: sums + the scalar products of the 4 uint8 at x with each of the 16 × 4 int8 at `weights` (VNNI)."""

    def codegen(b, sums, x, weights):
        products = declared(b, "llvm.x86.avx512.vpdpbusd.512", *[INTS_16.ir] * 4)
        four, tile = b.load(pointer(b, x, I32), align=1), b.load(pointer(b, weights, INTS_16.ir), align=1)
        return b.call(products, [sums, splat(b, four, WIDTH), tile])

    return emitted(INTS_16(INTS_16, types.intp, types.intp), codegen)


@intrinsic
def total(_typing, numbers):
    """Returns the sum of the 16 lanes, float32, in the order that is fastest."""

    def codegen(b, numbers):
        add = declared(b, "llvm.vector.reduce.fadd.v16f32", F32, F32, FLOATS_16.ir)
        return b.call(add, [F32(0.0), numbers], fastmath=("reassoc",))

    return emitted(types.float32(FLOATS_16), codegen)


def _permuted(b: ir.IRBuilder, table: ir.Value, indices: ir.Value) -> ir.Value:
    permute = declared(b, "llvm.x86.avx512.permvar.sf.512", FLOATS_16.ir, FLOATS_16.ir, INTS_16.ir)
    return b.call(permute, [table, indices])


@intrinsic
def add_looked_up(_typing, sums, table, indices):
    """Returns sums + table[the low 4 bits of each index], 16 float32."""
    signature = FLOATS_16(FLOATS_16, FLOATS_16, INTS_16)
    return emitted(signature, lambda b, sums, table, indices: b.fadd(sums, _permuted(b, table, indices)))


@intrinsic
def add_looked_up_times(_typing, sums, table, indices, factor):
    """Returns sums + table[the low 4 bits of each index] · factor in one rounding, 16 float32.

    With a factor of 1, `add_looked_up` returns the same, but without the processor's multipliers.
    """
    signature = FLOATS_16(FLOATS_16, FLOATS_16, INTS_16, FLOATS_16)
    return emitted(signature, lambda b, sums, table, i, factor: _fused(b, _permuted(b, table, i), factor, sums))


@intrinsic
def next_nibbles(_typing, indices):
    """Returns 16 int32, each shifted right by 4 bits."""
    return emitted(INTS_16(INTS_16), lambda b, i: b.lshr(i, constant(INTS_16, 4)))


def _columns(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Returns the 16 columns of the matrix that `rows` holds, as vectors of 16 elements."""
    rows = list(rows)
    for s in (8, 4, 2, 1):  # a transpose by swaps: each pass swaps the off-diagonal blocks of s × s elements
        low = [j + WIDTH - s if j & s else j for j in range(WIDTH)]
        high = [j + WIDTH if j & s else j + s for j in range(WIDTH)]
        for i in (i for i in range(WIDTH) if not i & s):
            pair = rows[i], rows[i + s]
            rows[i], rows[i + s] = (b.shuffle_vector(*pair, constant(INTS_16, lanes)) for lanes in (low, high))
    return rows


def _transpose(element: ir.Type):
    kind = ir.VectorType(element, WIDTH)

    def codegen(b, address, step, out, out_step):
        rows = [b.load(pointer(b, b.add(address, b.mul(step, I64(i))), kind), align=1) for i in range(WIDTH)]
        for i, column in enumerate(_columns(b, rows)):
            b.store(column, pointer(b, b.add(out, b.mul(out_step, I64(i))), kind), align=1)

    return emitted(types.void(types.intp, types.intp, types.intp, types.intp), codegen)


@intrinsic
def transpose_float_block(_typing, address, step, out, out_step):
    """Transposes 16 × 16 float32 from `address` to `out`; `step` and `out_step` are the bytes from one row to the next."""
    return _transpose(F32)


@intrinsic
def transpose_byte_block(_typing, address, step, out, out_step):
    """Transposes 16 × 16 uint8 from `address` to `out`; `step` and `out_step` are the bytes from one row to the next."""
    return _transpose(I8)
