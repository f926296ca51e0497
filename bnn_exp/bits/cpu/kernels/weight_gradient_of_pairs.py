"""The gradient at the weights of a convolution in bfloat16, by the processor's products of pairs (AVX512-BF16).

The instruction multiplies a pair of bfloat16 by a pair, and adds both products to a float32. A pair here is two neighbouring
positions of a row of an image. So a kernel first stores images and gradients as pairs.

Images x [batch, height, width, inputs] and gradients g [batch, height, width, outputs] are flat arrays of bfloat16 (as uint16).
The numbers of channels are multiples of 16. The convolution pads images by side // 2 zeros, for kernels of an odd side.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import (
    F32,
    FLOATS_16,
    I16,
    I32,
    I64,
    INTS_16,
    WIDTH,
    Vector,
    constant,
    declared,
    emitted,
    keep,
    picked,
    pointer,
    splat,
)

FLOATS_256 = Vector(F32, WIDTH * WIDTH)  # 16 inputs · 16 outputs
PAIR = 4  # bytes
BUFFER = 2**17  # bytes of pairs that a kernel keeps in the cache, about


class _BFloat(ir.Type):
    """LLVM's type bfloat, which llvmlite does not have."""

    def __str__(self) -> str:
        return "bfloat"


_PAIRS = ir.VectorType(_BFloat(), 2 * WIDTH)


@intrinsic
def zero_sums(_typing):
    """Returns 256 zeros, float32."""
    return emitted(FLOATS_256(), lambda b: ir.Constant(FLOATS_256.ir, None))


@intrinsic
def set_pairs(_typing, address, first, second):
    """Stores 16 pairs at `address`: the bfloat16 at the address `first` with those at `second`."""

    def codegen(b, address, first, second):
        shorts = ir.VectorType(I16, WIDTH)
        low, high = (b.zext(b.load(pointer(b, a, shorts), align=2), INTS_16.ir) for a in (first, second))
        b.store(b.or_(low, b.shl(high, constant(INTS_16, 16))), pointer(b, address, INTS_16.ir), align=4)

    return emitted(types.void(types.intp, types.intp, types.intp), codegen)


@intrinsic
def add_pair_products(_typing, sums, x, g):
    """Returns sums + the products of each of the 16 pairs at address x with each of the 16 pairs at address g."""

    def codegen(b, sums, x, g):
        add = declared(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS_16.ir, FLOATS_16.ir, _PAIRS, _PAIRS)
        pairs = b.bitcast(b.load(pointer(b, g, INTS_16.ir), align=4), _PAIRS)
        rows = []
        for i in range(WIDTH):
            one = splat(b, b.load(pointer(b, b.add(x, I64(PAIR * i)), I32), align=4), WIDTH)
            rows.append(b.call(add, [_row(b, sums, i), b.bitcast(one, _PAIRS), pairs]))
        while len(rows) > 1:
            rows = [_joined(b, *rows[i : i + 2]) for i in range(0, len(rows), 2)]
        return rows[0]

    return emitted(FLOATS_256(FLOATS_256, types.intp, types.intp), codegen)


@intrinsic
def add_to_rows(_typing, address, step, sums):
    """Adds each row of 16 sums to the 16 float32 at `address`, then at `address` + `step` and so on."""

    def codegen(b, address, step, sums):
        for i in range(WIDTH):
            place = pointer(b, b.add(address, b.mul(step, I64(i))), FLOATS_16.ir)
            b.store(b.fadd(b.load(place, align=4), _row(b, sums, i)), place, align=4)

    return emitted(types.void(types.intp, types.intp, FLOATS_256), codegen)


def _row(b: ir.IRBuilder, sums: ir.Value, i: int) -> ir.Value:
    return picked(b, sums, range(WIDTH * i, WIDTH * (i + 1)))


def _joined(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    lanes = range(2 * x.type.count)
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


@kernel
def _set_pairs(x, first, rows, width, channels, pad, step, count, out):
    """Stores the pairs of `rows` rows of `width` positions, from row `first` of x on: for each row `count` pairs.

    The pairs of a row begin at the positions −pad, step − pad, 2 · step − pad and so on. Positions outside of the row are 0.
    """
    no_numbers, bytes_ = np.zeros(channels, np.uint16), 2 * channels
    zeros, start, to = np.intp(no_numbers.ctypes.data), np.intp(x.ctypes.data), np.intp(out.ctypes.data)
    for row in range(start + first * width * bytes_, start + (first + rows) * width * bytes_, width * bytes_):
        for at in range(-pad, count * step - pad, step):
            low, high = row + at * bytes_, row + (at + 1) * bytes_
            if not 0 <= at < width:
                low = zeros
            if not 0 <= at + 1 < width:
                high = zeros
            for n in range(0, bytes_, 2 * WIDTH):
                set_pairs(to, low + n, high + n)
                to += PAIR * WIDTH
    keep(no_numbers)


@kernel
def add_weight_gradients(x, g, shape, outputs, side, begin, end, sums):
    """Adds the gradients of the images `begin` to `end` to `sums`, float32 [side, side, inputs, outputs], flat.

    `shape` is that of x.
    """
    _, height, width, inputs = shape
    pad, across, half = side // 2, width + side - 1, (width + 1) // 2
    row_x, row_g = PAIR * across * inputs, PAIR * half * outputs
    block = max(1, BUFFER // (height * (row_x + row_g)))
    pairs_x, pairs_g = np.empty(block * height * row_x, np.uint8), np.empty(block * height * row_g, np.uint8)
    of_x, of_g, out = np.intp(pairs_x.ctypes.data), np.intp(pairs_g.ctypes.data), np.intp(sums.ctypes.data)
    for first in range(begin, end, block):
        images = min(block, end - first)
        _set_pairs(x, first * height, images * height, width, inputs, pad, 1, across, pairs_x)
        _set_pairs(g, first * height, images * height, width, outputs, 0, 2, half, pairs_g)
        for ky in range(side):
            top, bottom = max(0, pad - ky), min(height, height + pad - ky)  # the rows of g whose row of x is in the image
            for kx in range(side):
                for m in range(0, inputs, WIDTH):
                    for n in range(0, outputs, WIDTH):
                        total = zero_sums()
                        for image in range(images):
                            for r in range(image * height + top, image * height + bottom):
                                at_x = of_x + (r + ky - pad) * row_x + PAIR * (kx * inputs + m)
                                at_g = of_g + r * row_g + PAIR * n
                                for _ in range(half):
                                    total = add_pair_products(total, at_x, at_g)
                                    at_x += 2 * PAIR * inputs
                                    at_g += PAIR * outputs
                        to = out + 4 * (((ky * side + kx) * inputs + m) * outputs + n)
                        add_to_rows(to, np.intp(4 * outputs), total)
    keep(pairs_x)
    keep(pairs_g)
