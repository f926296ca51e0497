"""Intrinsics that multiply pixels by the bits of a tile: weights are 1 for a bit 1 and 0 for a bit 0.

A *four* is four neighbouring pixels of a row. One instruction of VNNI multiplies a four by the weights of 16 outputs, each as a
byte, and adds up the four products of each output. AVX2 takes three instructions for 8 outputs. Any other processor multiplies
numbers of 16 bits.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_exp.bits.cpu.kernels.llvm import (
    BYTES_64,
    I8,
    I16,
    I32,
    I64,
    INTS_16,
    INTS_64,
    LANES,
    WIDTH,
    constant,
    declared,
    emitted,
    picked,
    pointer,
    splat,
)

_PARTS = LANES // WIDTH  # vectors of 16 outputs in a tile


@intrinsic
def add_eight(_typing, sums, x, tile):
    """Returns sums + the pixels at x, 8 uint8, where the output's byte at `tile` has a 1; 64 int32, one for each output."""

    def codegen(context, b, _signature, values):
        sums, x, tile = values
        parts, packed = _parts(b, sums), b.load(pointer(b, tile, BYTES_64.ir), align=1)
        for half in range(2):
            four = b.load(pointer(b, b.add(x, I64(4 * half)), I32), align=1)
            parts = [_add(context, b, *pair, four) for pair in zip(parts, _spread(b, packed, half), strict=True)]
        return _joined(b, parts)

    return INTS_64(INTS_64, types.intp, types.intp), codegen


@intrinsic
def spread(_typing, address, tile):
    """Stores the bits of the 64 bytes at `tile` at `address`, as bytes 0 and 1: uint8 [2 fours, 64 outputs, 4 weights]."""

    def codegen(b, address, tile):
        packed = b.load(pointer(b, tile, BYTES_64.ir), align=1)
        for i, weights in enumerate([*_spread(b, packed, 0), *_spread(b, packed, 1)]):
            b.store(weights, pointer(b, b.add(address, I64(LANES * i)), BYTES_64.ir), align=1)

    return emitted(types.void(types.intp, types.intp), codegen)


@intrinsic
def add_four(_typing, sums, x, weights):
    """Returns sums + the products of the four at x with the weights that `spread` stored at `weights`, added up; 64 int32."""

    def codegen(context, b, _signature, values):
        sums, x, weights = values
        four, parts = b.load(pointer(b, x, I32), align=1), _parts(b, sums)
        for i in range(_PARTS):
            bytes_ = b.load(pointer(b, b.add(weights, I64(LANES * i)), BYTES_64.ir), align=1)
            parts[i] = _add(context, b, parts[i], bytes_, four)
        return _joined(b, parts)

    return INTS_64(INTS_64, types.intp, types.intp), codegen


def _spread(b: ir.IRBuilder, packed: ir.Value, half: int) -> list[ir.Value]:
    """Returns bits 4 · `half` to 4 · `half` + 3 of 64 bytes as bytes 0 and 1: the four bits of an output side by side."""
    places = constant(BYTES_64, [1 << 4 * half + i % 4 for i in range(LANES)])
    repeated = [picked(b, packed, [WIDTH * part + i // 4 for i in range(LANES)]) for part in range(_PARTS)]
    bits = [b.icmp_unsigned("!=", b.and_(bytes_, places), ir.Constant(BYTES_64.ir, None)) for bytes_ in repeated]
    return [b.zext(each, BYTES_64.ir) for each in bits]


def _add(context, b: ir.IRBuilder, sums: ir.Value, weights: ir.Value, four: ir.Value) -> ir.Value:
    """Returns sums + the products of `four` with the 16 × 4 bytes `weights`, 16 int32."""
    return add_products(context, b, sums, weights, b.bitcast(splat(b, four, WIDTH), BYTES_64.ir))


def add_products(context, b: ir.IRBuilder, sums: ir.Value, weights: ir.Value, pixels: ir.Value) -> ir.Value:
    """Returns sums + the products of 16 × 4 uint8 with 16 × 4 int8 weights, each four added up, 16 int32.

    The weights are small: the products of a four and their sum fit in 16 bits.
    """
    features = context.codegen().magic_tuple()[2].split(",")
    if "+avx512vnni" in features:
        multiply = declared(b, "llvm.x86.avx512.vpdpbusd.512", *[INTS_16.ir] * 4)
        return b.call(multiply, [sums, *(b.bitcast(each, INTS_16.ir) for each in (pixels, weights))])
    if "+avxvnni" in features:
        return _by_avx_vnni(b, sums, pixels, weights)
    return b.add(sums, (_by_avx2 if "+avx2" in features else _by_any)(b, pixels, weights))


def _by_avx_vnni(b: ir.IRBuilder, sums: ir.Value, pixels: ir.Value, weights: ir.Value) -> ir.Value:
    ints = ir.VectorType(I32, 8)
    multiply = declared(b, "llvm.x86.avx512.vpdpbusd.256", *[ints] * 4)
    numbers = [b.bitcast(each, INTS_16.ir) for each in (sums, pixels, weights)]
    halves = [b.call(multiply, [picked(b, each, range(at, at + 8)) for each in numbers]) for at in (0, 8)]
    return b.shuffle_vector(*halves, constant(INTS_16, range(WIDTH)))


def _by_avx2(b: ir.IRBuilder, pixels: ir.Value, weights: ir.Value) -> ir.Value:
    shorts, ints, bytes_ = ir.VectorType(I16, 16), ir.VectorType(I32, 8), ir.VectorType(I8, 32)
    products = declared(b, "llvm.x86.avx2.pmadd.ub.sw", shorts, bytes_, bytes_)
    pairs = declared(b, "llvm.x86.avx2.pmadd.wd", ints, shorts, shorts)
    halves = [range(at, at + 32) for at in (0, 32)]
    both = [b.call(products, [picked(b, pixels, half), picked(b, weights, half)]) for half in halves]
    added = [b.call(pairs, [each, ir.Constant(shorts, [1] * 16)]) for each in both]
    return b.shuffle_vector(*added, constant(INTS_16, range(WIDTH)))


def _by_any(b: ir.IRBuilder, pixels: ir.Value, weights: ir.Value) -> ir.Value:
    shorts = ir.VectorType(I16, LANES)
    products = b.mul(b.zext(pixels, shorts), b.sext(weights, shorts))
    return b.sext(_added_pairs(b, _added_pairs(b, products)), INTS_16.ir)


def _added_pairs(b: ir.IRBuilder, numbers: ir.Value) -> ir.Value:
    """Returns the sums of the lanes 0 and 1, 2 and 3, …"""
    return b.add(*(picked(b, numbers, range(first, numbers.type.count, 2)) for first in (0, 1)))


def _parts(b: ir.IRBuilder, sums: ir.Value) -> list[ir.Value]:
    return [picked(b, sums, range(first, first + WIDTH)) for first in range(0, LANES, WIDTH)]


def _joined(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    while len(parts) > 1:
        lanes = ir.Constant(ir.VectorType(I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [b.shuffle_vector(*pair, lanes) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
