"""Triton's kernels for the weight gradient of a convolution; the definition is in `bnn_exp.nn.convolution`.

The gradient is a product of two matrices: of the gradients at the outputs, [outputs, pixels], and of the shifted inputs,
[pixels, size · size · inputs]. No kernel stores the shifted inputs. Programs add up parts of the pixels, and a second kernel
adds up the parts, in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 128  # pixels whose products a program adds at a time
MOST = 64  # the most outputs, and the most shifted inputs, of a program
PROGRAMS = 528  # about the number of programs: four on each multiprocessor of an H200
SUMS, PARTS = 16, 128  # elements of the gradient that a program of `total_kernel` computes, and parts that it adds at a time


@triton.jit
def part_kernel(
    x,
    grad,
    count,
    height,
    width,
    outputs,
    per,
    partial,
    INPUTS: tl.constexpr,
    SIZE: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Computes the sums over a part of `per` pixels: float32 [parts, outputs, SIZE · SIZE · INPUTS].

    `count` is the number of pixels of all images. x is [count, INPUTS], and grad [count, outputs].
    """
    o, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    down, across = (j // (INPUTS * SIZE) - SIZE // 2)[None, :], (j // INPUTS % SIZE - SIZE // 2)[None, :]
    real = (j < SIZE * SIZE * INPUTS)[None, :]
    begin = tl.program_id(0) * per
    end = tl.minimum(begin + per, count)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(begin, end, PIXELS):
        q = (first + tl.arange(0, PIXELS))[:, None]
        y, z = q // width % height + down, q % width + across
        inside = (q < end) & real & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        shifted = tl.load(x + (q + down * width + across) * INPUTS + (j % INPUTS)[None, :], inside, 0.0)
        g = tl.load(grad + q * outputs + o[None, :], (q < end) & (o < outputs)[None, :], 0.0)
        total = tl.dot(tl.trans(g), shifted, total)
    place = (tl.program_id(0) * outputs + o)[:, None] * (SIZE * SIZE * INPUTS) + j[None, :]
    tl.store(partial + place, total, (o < outputs)[:, None] & real)


@triton.jit
def total_kernel(
    partial, parts, weights, out, INPUTS: tl.constexpr, SPACE: tl.constexpr, PARTS: tl.constexpr, SUMS: tl.constexpr
):
    """Adds the sums of all parts, and stores them in the order of the weights: [outputs, INPUTS, SPACE]."""
    at = tl.program_id(0) * SUMS + tl.arange(0, SUMS)
    row, place, channel = at // (SPACE * INPUTS), at // INPUTS % SPACE, at % INPUTS
    total = tl.zeros((SUMS,), tl.float32)
    for first in range(0, parts, PARTS):
        p = (first + tl.arange(0, PARTS))[:, None]
        total += tl.sum(tl.load(partial + p * weights + at[None, :], (p < parts) & (at < weights)[None, :], 0.0), 0)
    tl.store(out + (row * INPUTS + channel) * SPACE + place, total, at < weights)


def weight_gradient(x: Tensor, grad: Tensor, size: int) -> Tensor:
    """Returns the gradient at the weights, by two kernels; see `bnn_exp.nn.convolution.weight_gradient`."""
    (batch, inputs, height, width), outputs = x.shape, grad.shape[1]
    x, grad = (t.permute(0, 2, 3, 1).contiguous() for t in (x, grad))
    columns, count = size * size * inputs, batch * height * width
    tile = [min(max(triton.next_power_of_2(n), 16), MOST) for n in (outputs, columns)]
    groups = triton.cdiv(outputs, tile[0]), triton.cdiv(columns, tile[1])
    per = triton.cdiv(triton.cdiv(count, PIXELS), max(PROGRAMS // (groups[0] * groups[1]), 1)) * PIXELS
    parts, weights = triton.cdiv(count, per), outputs * columns
    partial = torch.empty(parts, weights, device=x.device)
    part_kernel[(parts, *groups)](
        x, grad, count, height, width, outputs, per, partial,
        INPUTS=inputs, SIZE=size, PIXELS=PIXELS, ROWS=tile[0], COLUMNS=tile[1])  # fmt: skip
    out = torch.empty(outputs, inputs, size, size, device=x.device)
    grid = (triton.cdiv(weights, SUMS),)
    total_kernel[grid](partial, parts, weights, out, INPUTS=inputs, SPACE=size * size, PARTS=PARTS, SUMS=SUMS)
    return out
