"""The gradient at the weights of a convolution in bfloat16, by the processor's products of pairs (AVX512-BF16).

The instruction multiplies a pair of bfloat16 by a pair, and adds both products to a float32. A pair here is the same number of
two images. So a kernel first stores images and gradients as pairs.

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
from bnn_exp.bits.cpu.kernels.vectors_bf16 import BFLOATS_32

FLOATS_256 = Vector(F32, WIDTH * WIDTH)  # 16 inputs · 16 outputs
PAIR = 4  # bytes
BUFFER = 2**17  # bytes of pairs that a kernel keeps in the cache, about


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
        add = declared(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS_16.ir, FLOATS_16.ir, BFLOATS_32, BFLOATS_32)
        pairs = b.bitcast(b.load(pointer(b, g, INTS_16.ir), align=4), BFLOATS_32)
        rows = []
        for i in range(WIDTH):
            one = splat(b, b.load(pointer(b, b.add(x, I64(PAIR * i)), I32), align=4), WIDTH)
            rows.append(b.call(add, [_row(b, sums, i), b.bitcast(one, BFLOATS_32), pairs]))
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
def _pair_images(x, size, batch, first, count, out):
    """Stores images of `size` numbers as pairs: image 2k with image 2k + 1 for k = `first` … `first` + `count` − 1.

    An image after the last of the batch is 0.
    """
    missing = np.zeros(size if batch % 2 else 0, np.uint16)
    start, none, to = np.intp(x.ctypes.data), np.intp(missing.ctypes.data), np.intp(out.ctypes.data)
    for k in range(first, first + count):
        low = start + 4 * k * size
        high = low + 2 * size if 2 * k + 1 < batch else none
        for i in range(0, 2 * size, 2 * WIDTH):
            set_pairs(to, low + i, high + i)
            to += PAIR * WIDTH
    keep(missing)


@kernel
def add_weight_gradients(x, g, shape, outputs, side, begin, end, sums):
    """Adds the gradients of the pairs of images `begin` to `end` to `sums`, float32 [side, side, inputs, outputs], flat.

    `shape` is that of x.
    """
    batch, height, width, inputs = shape
    pad, size_x, size_g = side // 2, height * width * inputs, height * width * outputs
    block = max(1, BUFFER // (PAIR * (size_x + size_g)))
    pairs_x, pairs_g = np.empty(block * size_x, np.uint32), np.empty(block * size_g, np.uint32)
    of_x, of_g, out = np.intp(pairs_x.ctypes.data), np.intp(pairs_g.ctypes.data), np.intp(sums.ctypes.data)
    for first in range(begin, end, block):
        count = min(block, end - first)
        _pair_images(x, size_x, batch, first, count, pairs_x)
        _pair_images(g, size_g, batch, first, count, pairs_g)
        for ky in range(side):
            top, bottom = max(0, pad - ky), min(height, height + pad - ky)  # the rows of g whose row of x is in the image
            for kx in range(side):
                left, right = max(0, pad - kx), min(width, width + pad - kx)
                for m in range(0, inputs, WIDTH):
                    for n in range(0, outputs, WIDTH):
                        total = zero_sums()
                        for image in range(count):
                            for r in range(image * height + top, image * height + bottom):
                                at_x = of_x + PAIR * (((r + ky - pad) * width + left + kx - pad) * inputs + m)
                                at_g = of_g + PAIR * ((r * width + left) * outputs + n)
                                for _ in range(right - left):
                                    total = add_pair_products(total, at_x, at_g)
                                    at_x += PAIR * inputs
                                    at_g += PAIR * outputs
                        to = out + 4 * (((ky * side + kx) * inputs + m) * outputs + n)
                        add_to_rows(to, np.intp(4 * outputs), total)
    keep(pairs_x)
    keep(pairs_g)
