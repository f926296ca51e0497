"""Codes of activations: the elements of the operators of `bnn_exp.nn.codes`.

Arrays are flat, float32 or bfloat16 (as uint16), and their length is a multiple of 16.
"""

import numpy as np
from numba.extending import intrinsic

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import FLOATS_16, WIDTH, emitted
from bnn_exp.bits.cpu.kernels.vectors_16 import minus, plus, repeated, total, zero_floats
from bnn_exp.bits.cpu.kernels.vectors_of_arrays import at_least, numbers_at, set_numbers, times

CHUNK = 8192  # numbers whose sum one thread adds up
_TO_WHOLE = 1.5 * 2**23  # a float32 of this size has no fraction, so a sum with it is rounded, a half to the even number


@intrinsic
def at_most(_typing, numbers, highest):
    """Returns the smaller of the number and `highest` in each lane; NaN stays NaN."""
    signature = FLOATS_16(FLOATS_16, FLOATS_16)
    return emitted(signature, lambda b, x, high: b.select(b.fcmp_ordered(">", x, high), high, x))


@intrinsic
def where_below(_typing, numbers, x, limit):
    """Returns the number where x < limit, else 0."""
    signature = FLOATS_16(FLOATS_16, FLOATS_16, FLOATS_16)
    return emitted(signature, lambda b, n, x, limit: b.select(b.fcmp_ordered("<", x, limit), n, FLOATS_16.ir(None)))


@kernel
def set_codes(y, per_code, levels, begin, end, out):
    """Sets the codes of the numbers `begin` to `end`: y · per_code, rounded to a whole number from 0 to `levels`."""
    factor, highest, magic = repeated(np.float32(per_code)), repeated(np.float32(levels)), repeated(np.float32(_TO_WHOLE))
    for i in range(begin, end, WIDTH):
        number = at_most(at_least(times(numbers_at(y, i), factor), zero_floats()), highest)
        set_numbers(out, i, minus(plus(number, magic), magic))


@kernel
def set_code_gradients(grad, codes, per_code, levels, begin, end, out, cut):
    """Sets grad · per_code where the code is below `levels`, else 0; and for each chunk the sum of the other gradients."""
    factor, highest = repeated(np.float32(per_code)), repeated(np.float32(levels))
    for first in range(begin, end, CHUNK):
        rest = zero_floats()
        for i in range(first, min(first + CHUNK, end), WIDTH):
            g = numbers_at(grad, i)
            inside = where_below(g, numbers_at(codes, i), highest)
            set_numbers(out, i, times(inside, factor))
            rest = plus(rest, minus(g, inside))
        cut[first // CHUNK] = total(rest)
