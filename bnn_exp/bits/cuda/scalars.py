"""The functions of `bnn_exp.bits.scalar_rules` for Triton. Quotients and roots are rounded as torch rounds them."""

import triton
import triton.language as tl

from bnn_exp.bits import scalar_rules


@triton.jit
def real(x):
    return tl.full((), x, tl.float32)


@triton.jit
def where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def minimum(x, y):
    return tl.minimum(x, y)


@triton.jit
def maximum(x, y):
    return tl.maximum(x, y)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def divide(x, y):
    return tl.div_rn(x, y)


@triton.jit
def root(x):
    return tl.sqrt_rn(x)


@triton.jit
def floor(x):
    return tl.floor(x)


OPERATIONS = {
    "where": where, "minimum": minimum, "maximum": maximum, "absolute": absolute, "divide": divide, "root": root,
    "floor": floor, "real": real,
    "tl": tl,  # Triton's interpreter looks for it
}  # fmt: skip
SCALARS = scalar_rules.compiled(triton.jit, OPERATIONS)
