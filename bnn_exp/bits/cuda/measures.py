"""Triton's kernels for measures of a whole gradient: its standard deviation, the sizes of its rows and columns.

Sums are float64. The order of their terms is fixed: packed and dense bits have equal sums.

The functions from `one` to `of_row_and_column` are the argument SIZE of the kernel `flip`: each returns the measure for the
gradient at row r and column c.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.bits.cuda.flips import EXACT, OnGrid
from bnn_exp.bits.cuda.scalars import SCALARS

CHUNK = tl.constexpr(4096)  # gradients that a program of `moments` adds at a time
PARTS = tl.constexpr(256)  # the most programs of `moments`: `deviation` adds the sums of all of them
ROWS = tl.constexpr(8)  # rows whose squares a program of `row_sizes` adds
COLUMNS = tl.constexpr(32)  # columns whose squares a program of `column_sizes` adds
WIDE = tl.constexpr(256)  # columns, rows or blocks of rows that a program adds at a time
Measured = tuple[Tensor, int, Any]  # a measure, the number of its parts, and the function that is the argument SIZE
TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal float32, in place of a size of 0


@triton.jit
def one(measured, parts, rows, columns, r, c):
    """Returns 1, so the gradient keeps its units."""
    return 1.0


@triton.jit
def number(measured, parts, rows, columns, r, c):
    """Returns the number at the address `measured`."""
    return tl.load(measured)


@triton.jit
def deviation(measured, parts, rows, columns, r, c):
    """Returns the standard deviation of all gradients from the results of `moments`, float64 [2, parts]."""
    i = tl.arange(0, PARTS)
    mean = tl.sum(tl.load(measured + i, i < parts, 0.0), 0) / (rows * columns)
    square = tl.sum(tl.load(measured + parts + i, i < parts, 0.0), 0) / (rows * columns)
    return tl.sqrt(tl.maximum(square - mean * mean, 0.0)).to(tl.float32)


@triton.jit
def of_row(measured, parts, rows, columns, r, c):
    """Returns the size of a row from the results of `row_sizes`."""
    return tl.load(measured + r, r < rows, 1.0)


@triton.jit
def of_row_and_column(measured, parts, rows, columns, r, c):
    """Returns the product of the sizes of a row and a column."""
    return of_row(measured, parts, rows, columns, r, c) * tl.load(measured + rows + c, c < columns, 1.0)


@triton.jit
def moments(g, stride, columns, count, chunk, sums, parts, FLAT: tl.constexpr):
    """Computes Σ g and Σ g² over `chunk` gradients for each program, float64 [2, parts]."""
    first, end = tl.program_id(0) * chunk, tl.minimum((tl.program_id(0) + 1) * chunk, count)
    total, squares = tl.zeros((CHUNK,), tl.float64), tl.zeros((CHUNK,), tl.float64)
    for begin in range(first, end, CHUNK):
        i = begin + tl.arange(0, CHUNK)
        at = i if FLAT else (i // columns).to(tl.int64) * stride + i % columns
        x = tl.load(g + at, i < end, 0.0).to(tl.float64)
        total += x
        squares += x * x
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))
    tl.store(sums + parts + tl.program_id(0), tl.sum(squares, 0))


@triton.jit
def row_sizes(g, stride, rows, columns, sizes, partial, OF_COLUMNS: tl.constexpr):
    """Computes the root mean square of each row, float32 [rows].

    If OF_COLUMNS is True, the kernel also computes the sum of squares of each column over ROWS rows, float64 [blocks, columns].
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float64)
    for first in range(0, columns, WIDE):
        c = first + tl.arange(0, WIDE)
        there = (r < rows)[:, None] & (c < columns)[None, :]
        x = tl.load(g + r.to(tl.int64)[:, None] * stride + c[None, :], there, 0.0).to(tl.float64)
        total += tl.sum(x * x, 1)
        if OF_COLUMNS:
            tl.store(partial + tl.program_id(0).to(tl.int64) * columns + c, tl.sum(x * x, 0), c < columns)
    tl.store(sizes + r, tl.sqrt(total / columns).to(tl.float32), r < rows)


@triton.jit
def column_sizes(partial, blocks, rows, columns, sizes):
    """Computes RMS(column) / RMS(tensor) from the results of `row_sizes`, float32 [columns], behind the sizes of the rows."""
    square = tl.zeros((WIDE,), tl.float64)
    for first in range(0, rows, WIDE):
        r = first + tl.arange(0, WIDE)
        x = tl.load(sizes + r, r < rows, 0.0).to(tl.float64)
        square += x * x
    c, total = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.zeros((COLUMNS,), tl.float64)
    for first in range(0, blocks, WIDE):
        block = first + tl.arange(0, WIDE)
        there = (block < blocks)[:, None] & (c < columns)[None, :]
        total += tl.sum(tl.load(partial + block.to(tl.int64)[:, None] * columns + c[None, :], there, 0.0), 0)
    whole = tl.maximum(tl.sqrt(tl.sum(square, 0) / rows), TINY)
    tl.store(sizes + rows + c, (tl.sqrt(total / rows) / whole).to(tl.float32), c < columns)


@triton.jit(do_not_specialize_on_alignment=["strength", "tau", "variance"])
def heat(measured, parts, rows, columns, strength, variance, tau, TEMPERATURE: tl.constexpr):
    """Computes a temperature τ from the `variance` σ², then updates σ² for the next step (`bnn_exp.optim.masks`)."""
    sigma = deviation(measured, parts, rows, columns, 0, 0)
    now, following = TEMPERATURE(tl.load(strength), tl.load(variance), sigma)
    tl.store(tau, now)
    tl.store(variance, following)


@triton.jit
def unflipped(counts, programs, bits, share):
    """Computes the fraction of `bits` that did not flip, float32, from the numbers of flips of all programs."""
    total = tl.zeros((WIDE,), tl.int32)
    for first in range(0, programs, WIDE):
        i = first + tl.arange(0, WIDE)
        total += tl.load(counts + i, i < programs, 0)
    tl.store(share, 1 - (tl.sum(total, 0).to(tl.float64) / bits).to(tl.float32))


def measured_deviation(given: OnGrid) -> Measured:
    """Measures a gradient for `deviation`."""
    chunk = triton.cdiv(triton.cdiv(given.bits, PARTS.value), CHUNK.value) * CHUNK.value
    parts = triton.cdiv(given.bits, chunk)
    sums = given.g.new_empty(2, parts, dtype=torch.float64)
    stride, columns = given.g.stride(0), given.columns
    moments[(parts,)](given.g, stride, columns, given.bits, chunk, sums, parts, FLAT=stride == columns, num_warps=8, **EXACT)
    return sums, parts, deviation


def measured_rows(given: OnGrid, of_columns: bool = False) -> Measured:
    """Measures the rows of a gradient, for `of_row`. A gradient of one row is measured by its standard deviation instead."""
    rows, columns = given.rows, given.columns
    if rows == 1:
        return measured_deviation(given)
    blocks = triton.cdiv(rows, ROWS.value)
    sizes = given.g.new_empty(rows + columns if of_columns else rows)
    partial = given.g.new_empty(blocks, columns, dtype=torch.float64) if of_columns else sizes
    row_sizes[(blocks,)](given.g, given.g.stride(0), rows, columns, sizes, partial, OF_COLUMNS=of_columns, **EXACT)
    if not of_columns:
        return sizes, 0, of_row
    column_sizes[(triton.cdiv(columns, COLUMNS.value),)](partial, blocks, rows, columns, sizes, **EXACT)
    return sizes, 0, of_row_and_column


def measured_factors(given: OnGrid) -> Measured:
    """Measures the rows and the columns of a gradient, for `of_row_and_column`."""
    return measured_rows(given, of_columns=True)


def measured_heat(given: OnGrid, temperature: str) -> Measured:
    """Computes the temperature τ of the step, for `number`. The state becomes the variance of the next step."""
    sums, parts, _ = measured_deviation(given)
    tau = torch.empty_like(given.strength)
    heat[(1,)](
        sums, parts, given.rows, given.columns, given.strength, given.state[0], tau, TEMPERATURE=SCALARS[temperature], **EXACT
    )
    return tau, 0, number


MEASURES: dict[str, Callable[[OnGrid], Measured]] = {
    "one": lambda given: (given.strength, 0, one),
    "strength": lambda given: (given.strength, 0, number),
    "beta": lambda given: (given.state[1], 0, number),
    "deviation": measured_deviation,
    "rows": measured_rows,
    "factors": measured_factors,
    "gaussian": lambda given: measured_heat(given, "gaussian"),
    "scaled_gaussian": lambda given: measured_heat(given, "scaled_gaussian"),
}
