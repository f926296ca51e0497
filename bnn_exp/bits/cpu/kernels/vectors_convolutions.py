"""Intrinsics of convolutions: the sums of several positions of a picture for 16, 32 or 64 outputs at once.

A *four* is four neighbouring bytes of a picture: the codes of four channels, or 32 bits. The weights of a four are 4 bytes for
each output. For codes each byte is a weight, 1, 0 or −1. For bits the 4 bytes are the bits of the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_exp.bits.cpu.kernels.llvm import (
    BYTES_64,
    F32,
    I8,
    I32,
    I64,
    INTS_16,
    LANES,
    WIDTH,
    constant,
    declared,
    emitted,
    picked,
    pointer,
    splat,
)
from bnn_exp.bits.cpu.kernels.vectors_pixels import add_products

_BYTES_16 = ir.VectorType(I8, WIDTH)
_ROUND = float(2**23)  # a float32 from 0 to 255 plus this number is rounded, half to even, into the lowest bits


@intrinsic
def spread_codes(_typing, address, step, tile, zero):
    """Stores the weights of 8 inputs for 16 outputs as bytes 1 and `zero`, int8: a four at `address`, one at address + step.

    `tile` is the address of 16 bytes, one for each output.
    """

    def codegen(b, address, step, tile, zero):
        repeated = picked(b, b.load(pointer(b, tile, _BYTES_16), align=1), [lane // 4 for lane in range(LANES)])
        zeros = splat(b, b.trunc(zero, I8))
        for half in range(2):
            places = constant(BYTES_64, [1 << 4 * half + lane % 4 for lane in range(LANES)])
            one = b.icmp_unsigned("!=", b.and_(repeated, places), ir.Constant(BYTES_64.ir, None))
            at = pointer(b, b.add(address, b.mul(step, I64(half))), BYTES_64.ir)
            b.store(b.select(one, constant(BYTES_64, 1), zeros), at, align=1)

    return emitted(types.void(types.intp, types.intp, types.intp, types.intp), codegen)


@intrinsic
def clear_weights(_typing, address, first):
    """Sets the weights of the inputs from `first` on of the four at `address`, 16 × 4 bytes, to 0."""

    def codegen(b, address, first):
        at = pointer(b, address, BYTES_64.ir)
        places = constant(BYTES_64, [lane % 4 for lane in range(LANES)])
        kept = b.icmp_signed("<", places, splat(b, b.trunc(first, I8)))
        b.store(b.select(kept, b.load(at, align=1), ir.Constant(BYTES_64.ir, None)), at, align=1)

    return emitted(types.void(types.intp, types.intp), codegen)


@intrinsic
def spread_bits(_typing, address, tile, count):
    """Stores the weights of 32 inputs for 16 outputs at `address`: the 4 bytes of an output side by side.

    Args:
        tile: the address of the first of 4 columns of a tile; 16 bytes of each column are used.
        count: the number of columns that exist, at least 1. Bytes of any other column become 0.
    """

    def codegen(b, address, tile, count):
        columns = []
        for i in range(4):
            exists = b.icmp_signed("<", I64(i), count)
            at = b.add(tile, b.select(exists, I64(LANES * i), I64(0)))
            columns.append(b.select(exists, b.load(pointer(b, at, _BYTES_16), align=1), ir.Constant(_BYTES_16, None)))
        pairs = [b.shuffle_vector(*columns[i : i + 2], _interleaved(WIDTH, 1)) for i in (0, 2)]
        b.store(b.shuffle_vector(*pairs, _interleaved(2 * WIDTH, 2)), pointer(b, address, BYTES_64.ir), align=1)

    return emitted(types.void(types.intp, types.intp, types.intp), codegen)


def _interleaved(lanes: int, run: int) -> ir.Constant:
    """Returns the lanes of a shuffle that takes `run` lanes from one vector, then `run` from the other, and so on."""
    order = [i + j + part for i in range(0, lanes, run) for part in (0, lanes) for j in range(run)]
    return ir.Constant(ir.VectorType(I32, 2 * lanes), order)


def _add_common_ones(context, b: ir.IRBuilder, sums: ir.Value, weights: ir.Value, bits: ir.Value) -> ir.Value:
    """Returns sums + the number of ones that the four `bits` has in common with the 16 fours `weights`, 16 int32."""
    features = context.codegen().magic_tuple()[2].split(",")
    common = b.and_(splat(b, bits, WIDTH), b.bitcast(weights, INTS_16.ir))
    if "+avx2" not in features or "+avx512vpopcntdq" in features:
        return b.add(sums, b.call(declared(b, "llvm.ctpop.v16i32", INTS_16.ir, INTS_16.ir), [common]))
    count = declared(b, "llvm.ctpop.v64i8", BYTES_64.ir, BYTES_64.ir)
    return add_products(context, b, sums, constant(BYTES_64, 1), b.call(count, [b.bitcast(common, BYTES_64.ir)]))


def _add_products_of_codes(context, b: ir.IRBuilder, sums: ir.Value, weights: ir.Value, codes: ir.Value) -> ir.Value:
    """Returns sums + the products of the four `codes` with the 16 × 4 bytes `weights`, 16 int32."""
    return add_products(context, b, sums, weights, b.bitcast(splat(b, codes, WIDTH), BYTES_64.ir))


@contextmanager
def _range(b: ir.IRBuilder, first: ir.Value, last: ir.Value, step: ir.Value) -> Iterator[ir.Value]:
    """Context manager: the body is emitted as a loop over range(first, last, step); yields the loop's number."""
    with cgutils.for_range_slice(b, first, last, step, inc=True) as (number, _):
        yield number


def _block(rows: int, vectors: int, add: Callable) -> Callable:
    """Returns an intrinsic that computes the sums of `rows` positions for 16 · `vectors` outputs.

    All sums stay in registers until the end.
    """

    @intrinsic
    def block(_typing, x, offsets, runs, step, fours, stride, weights, sums):
        """Stores the sums, int32 [rows, 16 · vectors], at address `sums`.

        Args:
            x, offsets: the first byte under the kernel at position i is at x + the int64 at offsets + 8i.
            runs, step: the number of runs, and the bytes from one to the next.
            fours, stride: the number of fours in each run, and the bytes from one to the next.
            weights: the address of the weights, uint8 [runs, fours, vectors, 64].
        """

        def codegen(context, b, _signature, values):
            x, offsets, runs, step, fours, stride, weights, sums = values
            totals = [cgutils.alloca_once_value(b, ir.Constant(INTS_16.ir, None)) for _ in range(rows * vectors)]
            next_weights = cgutils.alloca_once_value(b, weights)
            starts = [b.add(x, b.load(pointer(b, b.add(offsets, I64(8 * i)), I64))) for i in range(rows)]

            def add_four(place: ir.Value) -> None:
                ours = b.load(next_weights)
                each = [b.load(pointer(b, b.add(ours, I64(LANES * v)), BYTES_64.ir), align=64) for v in range(vectors)]
                for i, start in enumerate(starts):
                    four = b.load(pointer(b, b.add(start, place), I32), align=1)
                    for v in range(vectors):
                        total = totals[i * vectors + v]
                        b.store(add(context, b, b.load(total), each[v], four), total)
                b.store(b.add(ours, I64(LANES * vectors)), next_weights)

            with (
                _range(b, I64(0), b.mul(runs, step), step) as down,
                _range(b, down, b.add(down, b.mul(fours, stride)), stride) as at,
            ):
                add_four(at)
            for i, total in enumerate(totals):
                b.store(b.load(total), pointer(b, b.add(sums, I64(LANES * i)), INTS_16.ir), align=64)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), codegen

    return block


BLOCKS = (8, 1), (8, 2), (4, 4), (1, 4)  # positions and vectors
sums_of_codes_8x1, sums_of_codes_8x2, sums_of_codes_4x4, sums_of_codes_1x4 = (
    _block(*block, _add_products_of_codes) for block in BLOCKS
)
sums_of_bits_8x1, sums_of_bits_8x2, sums_of_bits_4x4, sums_of_bits_1x4 = (_block(*block, _add_common_ones) for block in BLOCKS)


def _codes(vectors: int) -> Callable:
    """Returns an intrinsic that turns the sums of 16 · `vectors` outputs into codes."""

    @intrinsic
    def set_codes(_typing, address, sums, pool, across, down, bias, multiplier, levels):
        """Stores the codes clamp(rint((sum + bias) · multiplier), 0, levels), uint8, at `address`. rint rounds half to even.

        A code is the greatest of a window of pool × pool positions.

        Args:
            sums: the address of the sums of the first position, int32.
            across, down: bytes from the sums of one position to those of the next one in a row, and in the next row.
            bias, multiplier: addresses of int32 and float32.
        """
        kind, floats = (ir.VectorType(element, WIDTH * vectors) for element in (I32, F32))

        def codegen(context, b, _signature, values):
            address, sums, pool, across, down, bias, multiplier, levels = values
            shifts, factors = b.load(pointer(b, bias, kind), align=4), b.load(pointer(b, multiplier, floats), align=4)
            best = cgutils.alloca_once_value(b, ir.Constant(floats, None))
            across_all = b.mul(pool, across)
            with _range(b, I64(0), b.mul(pool, down), down) as row, _range(b, row, b.add(row, across_all), across) as place:
                given = b.load(pointer(b, b.add(sums, place), kind), align=4)
                numbers, before = b.fmul(b.sitofp(b.add(given, shifts), floats), factors), b.load(best)
                b.store(b.select(b.fcmp_ordered(">", numbers, before), numbers, before), best)
            numbers, most = b.load(best), splat(b, b.sitofp(levels, F32), WIDTH * vectors)
            within = b.select(b.fcmp_ordered("<", numbers, most), numbers, most)
            rounded = b.bitcast(b.fadd(within, ir.Constant(floats, [_ROUND] * WIDTH * vectors)), kind)
            bytes_ = ir.VectorType(I8, WIDTH * vectors)
            b.store(b.trunc(rounded, bytes_), pointer(b, address, bytes_), align=1)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), codegen

    return set_codes


set_codes_16, set_codes_32, set_codes_64 = map(_codes, (1, 2, 4))


@intrinsic
def add_codes(_typing, sums, codes):
    """Returns sums + the 16 uint8 at address `codes`, 16 int32."""

    def codegen(b, sums, codes):
        return b.add(sums, b.zext(b.load(pointer(b, codes, _BYTES_16), align=1), INTS_16.ir))

    return emitted(INTS_16(INTS_16, types.intp), codegen)


@intrinsic
def set_ints(_typing, address, numbers):
    """Stores 16 int32 at `address`."""
    return emitted(types.void(types.intp, INTS_16), lambda b, a, n: b.store(n, pointer(b, a, INTS_16.ir), align=4))


def _steps(vectors: int) -> Callable:
    """Returns an intrinsic that compares the sums of 16 · `vectors` outputs with thresholds."""

    @intrinsic
    def steps(_typing, sums, left, shift, thresholds):
        """Returns the bits 1[sum · 2^left + shift ≥ threshold]; `sums` and `thresholds` are addresses of int32."""

        def codegen(b, sums, left, shift, thresholds):
            lanes = WIDTH * vectors
            kind = ir.VectorType(I32, lanes)
            numbers, limits = (b.load(pointer(b, each, kind), align=4) for each in (sums, thresholds))
            left, shift = (splat(b, b.trunc(each, I32), lanes) for each in (left, shift))
            found = b.bitcast(b.icmp_signed(">=", b.add(b.shl(numbers, left), shift), limits), ir.IntType(lanes))
            return found if lanes == LANES else b.zext(found, I64)

        return emitted(types.intp(types.intp, types.intp, types.intp, types.intp), codegen)

    return steps


steps_of_16, steps_of_32, steps_of_64 = map(_steps, (1, 2, 4))
