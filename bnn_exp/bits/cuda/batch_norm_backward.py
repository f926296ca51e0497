"""Triton's kernels for the backward pass through activation and BatchNorm of an MLP of bits.

The kernels take the gradient at y, [rows, given], which passes where |y| ≤ window. In columns beyond `given` the gradient is 0.
`bnn_exp.bits.cuda.batch_norm` explains z, y, the vectors and the blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.bits.cuda.batch_norm import (
    COLUMNS,
    NEURONS,
    PARTS,
    ROWS,
    TALL,
    block,
    blocks_of_elements,
    over_parts,
    partial_sums,
    parts_of,
    places_of,
    store_values,
    warps,
)
from bnn_exp.bits.cuda.operations import vectors_of

# The columns of a program that holds all rows. Twice as many as in the forward pass are faster here.
STRIPE = tl.constexpr(16)


@triton.jit
def _passing(grad, given, z, at, r, n, there, scale, shift, mean, window):
    """Returns three tensors: the gradient at y, which is 0 where |y| > window; z − mean; and y = z·scale + shift.

    The gradient and z − mean are 0 beyond the mask `there`.
    """
    x = tl.load(z + at, there, 0).to(tl.float32)
    y = x * tl.load(scale + n)[None, :] + tl.load(shift + n)[None, :]
    g = tl.load(grad + r[:, None].to(tl.int64) * given + n[None, :], there & (n < given)[None, :], 0.0).to(tl.float32)
    return tl.where(tl.abs(y) <= window, g, 0.0), tl.where(there, x - tl.load(mean + n)[None, :], 0.0), y


@triton.jit
def _slopes(g, product, n, rows, scale, inverse, of_weight, of_bias):
    """Returns the slope and the offset of the gradient at z. Stores the gradients of BatchNorm's weight and bias.

    `g` is the sum of the gradient at y over the rows. `product` is the sum of this gradient times z − mean.
    """
    factor, steep = tl.load(scale + n), tl.load(inverse + n)
    tl.store(of_weight + n, steep * product)
    tl.store(of_bias + n, g)
    return factor * steep * steep * product / rows, factor * g / rows


@triton.jit
def total_kernel(grad, given, z, rows, width, scale, shift, mean, window, sums, products):
    """Computes Σ g and Σ g · (z − mean) of the gradient g inside the window, in each TALL rows: float32 [parts, width]."""
    begin, n = tl.program_id(0) * TALL, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total, product = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(begin, tl.minimum(begin + TALL, rows), ROWS):
        r, _, at, there = block(first, rows, width, ROWS, COLUMNS)
        g, away, _ = _passing(grad, given, z, at, r, n, there, scale, shift, mean, window)
        total += g
        product += g * away
    place = tl.program_id(0) * width + n
    tl.store(sums + place, tl.sum(total, 0))
    tl.store(products + place, tl.sum(product, 0))


@triton.jit
def slopes_kernel(sums, products, rows, width, scale, inverse, slope, offset, of_weight, of_bias):
    """Computes `slope` and `offset` for `center_kernel`, and gradients of BatchNorm's parameters, from partial sums."""
    n, parts = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS), tl.cdiv(rows, TALL)
    g, product = tl.zeros((NEURONS,), tl.float32), tl.zeros((NEURONS,), tl.float32)
    for first in range(0, parts, PARTS):
        g += tl.sum(over_parts(sums, first, parts, width, n), 0)
        product += tl.sum(over_parts(products, first, parts, width, n), 0)
    steep, level = _slopes(g, product, n, rows, scale, inverse, of_weight, of_bias)
    tl.store(slope + n, steep)
    tl.store(offset + n, level)


@triton.jit(do_not_specialize=["zero", "one"])
def center_kernel(grad, given, z, rows, width, scale, shift, mean, window, slope, offset, out, values, zero, one):
    """Computes the gradient at z from the gradient at y, [rows, width] (Ioffe & Szegedy 2015, section 3).

    Also stores the codes of the activation's bits; see `store_values`.
    """
    r, n, at, there = block(tl.program_id(0) * ROWS, rows, width, ROWS, COLUMNS)
    g, away, y = _passing(grad, given, z, at, r, n, there, scale, shift, mean, window)
    found = tl.load(scale + n)[None, :] * g - tl.load(slope + n)[None, :] * away - tl.load(offset + n)[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), there)
    store_values(values, at, there, y, zero, one)


@triton.jit(do_not_specialize=["zero", "one"])
def gradient_kernel(grad, given, z, rows, width, scale, shift, mean, inverse, window, of_weight, of_bias, out, values,
                    zero, one, ALL: tl.constexpr):  # fmt: skip
    """Computes the results of the three kernels above. One program holds all rows, at most ALL, of STRIPE columns."""
    r, n, at, there = block(0, rows, width, ALL, STRIPE)
    g, away, y = _passing(grad, given, z, at, r, n, there, scale, shift, mean, window)
    slope, offset = _slopes(tl.sum(g, 0), tl.sum(g * away, 0), n, rows, scale, inverse, of_weight, of_bias)
    found = tl.load(scale + n)[None, :] * g - slope[None, :] * away - offset[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), there)
    store_values(values, at, there, y, zero, one)


def slopes_of_gradient(grad, z, scale, shift, mean, inverse, window):
    """Returns four vectors, by two kernels; see `bnn_exp.bits.cuda.operations.slopes_of_gradient`."""
    (rows, width), partial, vectors = z.shape, partial_sums(z), vectors_of(z)
    total_kernel[parts_of(z)](grad, grad.shape[1], z, rows, width, scale, shift, mean, window, *partial)
    slopes_kernel[(width // NEURONS.value,)](*partial, rows, width, scale, inverse, *vectors)
    return tuple(vectors)


def centered_gradient(grad, z, scale, shift, mean, window, slope, offset, zero, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns the gradient at z and the activation, by one kernel; see `bnn_exp.bits.cuda.operations.centered_gradient`."""
    out, values = (z.new_empty(z.shape, dtype=dtype) for _ in range(2))
    vectors = scale, shift, mean, window, slope, offset
    center_kernel[blocks_of_elements(z)](grad, grad.shape[1], z, *z.shape, *vectors, out, *places_of(values, zero))
    return out, values


def gradient_at_sums(grad, z, scale, shift, mean, inverse, window, zero, dtype: torch.dtype):
    """Returns the gradient at z, the activation, and the gradients of BatchNorm's parameters, by one kernel.

    See `bnn_exp.bits.cuda.operations.gradient_at_sums`. z has at most `FEW` rows.
    """
    (rows, width), (of_weight, of_bias) = z.shape, vectors_of(z, 2)
    out, values = (z.new_empty(z.shape, dtype=dtype) for _ in range(2))
    gradient_kernel[(1, width // STRIPE.value)](
        grad, grad.shape[1], z, rows, width, scale, shift, mean, inverse, window, of_weight, of_bias, out,
        *places_of(values, zero), ALL=triton.next_power_of_2(rows), num_warps=warps(rows, STRIPE.value))  # fmt: skip
    return out, values, of_weight, of_bias
