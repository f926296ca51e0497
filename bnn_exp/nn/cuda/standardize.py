"""Triton's kernels that normalise each sample by itself; the definitions are in `bnn_exp.nn.standardize`.

z is [samples, rows, columns]. A program computes COLUMNS columns of one sample, in tiles of ROWS rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.nn.cuda.batch_norm_kernels import activated, offsets, passing

TILE = 4096  # elements of a tile


@triton.jit
def standardize_kernel(
    z,
    rows,
    columns,
    low,
    high,
    out,
    means,
    stds,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Computes mean, standard deviation and the activation of y = (z − mean)/(std + 1e−8).

    Sums are taken of z minus the mean of the first tile, so the result loses no digits where the mean is large.
    """
    begin, n = tl.program_id(0).to(tl.int64) * rows * columns, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at, there = offsets(0, rows, columns, n, ROWS)
    near = tl.sum(tl.load(z + begin + at, there, 0.0).to(tl.float32), 0) / tl.minimum(rows, ROWS)
    total, square = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, rows, ROWS):
        at, there = offsets(first, rows, columns, n, ROWS)
        away = tl.where(there, tl.load(z + begin + at, there, 0.0).to(tl.float32) - near[None, :], 0.0)
        total += away
        square += away * away
    away = tl.sum(total, 0) / rows
    mean = near + away
    std = tl.sqrt_rn(tl.maximum(tl.sum(square, 0) - rows * away * away, 0.0) / (rows - 1))
    tl.store(means + tl.program_id(0) * columns + n, mean, n < columns)
    tl.store(stds + tl.program_id(0) * columns + n, std, n < columns)
    scale = 1 / (std + 1e-8)
    for first in range(0, rows, ROWS):
        at, there = offsets(first, rows, columns, n, ROWS)
        y = (tl.load(z + begin + at, there, 0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
        tl.store(out + begin + at, activated(y, low, high, ACTIVATION).to(out.dtype.element_ty), there)


@triton.jit
def gradient_kernel(
    grad,
    z,
    rows,
    columns,
    means,
    stds,
    window,
    out,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Computes the gradient at z."""
    begin, n = tl.program_id(0).to(tl.int64) * rows * columns, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mean = tl.load(means + tl.program_id(0) * columns + n, n < columns, 0.0)
    std = tl.load(stds + tl.program_id(0) * columns + n, n < columns, 0.0)
    scale = 1 / (std + 1e-8)
    total, product = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, rows, ROWS):
        at, there = offsets(first, rows, columns, n, ROWS)
        away = tl.load(z + begin + at, there, 0.0).to(tl.float32) - mean[None, :]
        g = tl.load(grad + begin + at, there, 0.0).to(tl.float32)
        g = passing(g, away * scale[None, :], window, ACTIVATION)
        total += g
        product += g * away
    offset = tl.sum(total, 0) / rows
    slope = tl.where(std > 0, tl.sum(product, 0) * scale * scale / (tl.where(std > 0, std, 1.0) * (rows - 1)), 0.0)
    for first in range(0, rows, ROWS):
        at, there = offsets(first, rows, columns, n, ROWS)
        away = tl.load(z + begin + at, there, 0.0).to(tl.float32) - mean[None, :]
        g = tl.load(grad + begin + at, there, 0.0).to(tl.float32)
        g = passing(g, away * scale[None, :], window, ACTIVATION)
        found = (g - offset[None, :]) * scale[None, :] - slope[None, :] * away
        tl.store(out + begin + at, found.to(out.dtype.element_ty), there)


def standardize(z: Tensor, activation: str, low: float, high: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    (samples, rows, columns), (size, grid) = z.shape, _size(z)
    out, vectors = torch.empty_like(z, dtype=dtype), z.new_empty(2, samples, columns, dtype=torch.float32)
    standardize_kernel[grid](z, rows, columns, low, high, out, *vectors, ACTIVATION=activation, **size)
    return out, *vectors


def standardize_gradient(grad: Tensor, z: Tensor, mean: Tensor, std: Tensor, activation: str, window: float) -> Tensor:
    (_, rows, columns), (size, grid) = z.shape, _size(z)
    out = torch.empty_like(z)
    gradient_kernel[grid](grad, z, rows, columns, mean, std, window, out, ACTIVATION=activation, **size)
    return out


def _size(z: Tensor) -> tuple[dict[str, Any], tuple[int, int]]:
    """Returns the size of a tile, as arguments of a kernel, and the grid."""
    columns = min(triton.next_power_of_2(z.shape[2]), 64)
    rows = min(triton.next_power_of_2(z.shape[1]), TILE // columns)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": 8}, (len(z), triton.cdiv(z.shape[2], columns))
