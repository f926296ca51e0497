"""The operators of `bnn_exp.bits.operators` on CUDA, by Triton's kernels. Not measured on a GPU yet.

Every operator counts matches: the ones that an output's weights have in common with a row of bits. For fewer than 16 rows,
population counts do this. For more rows, the tensor cores multiply the bits as int8. Both ways are exact. A row of pixels is
treated as eight rows of bits, one for each bit of a pixel. A tile is contiguous, and neighbouring lanes are neighbouring bytes,
so that loads are coalesced.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.bits.checks import check_outputs, check_thresholds, sizes
from bnn_exp.bits.reference import LANES

_COLUMNS = 32  # bytes of a row that a Triton program reads in one pass of its loop
_ROWS = 16  # rows of one Triton program of `_multiply`: the tensor cores take no fewer


@triton.jit
def _popcount(x):
    """Returns the number of ones in each uint32. The compiler turns this form into one instruction of the GPU."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    return (((x + (x >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


@triton.jit
def _count(x, tiles, out, row, columns, width, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Stores the number of ones that row r has in common with each lane of tile g, in out[r, g·LANES + lane].

    A program computes one r and one g. A row of x has `row` bytes, a lane `columns` bytes, and a row of `out` `width` numbers.
    """
    r, g = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    lane, column = tl.arange(0, LANES), tl.arange(0, COLUMNS)
    total = tl.zeros((LANES,), tl.int32)
    for begin in range(0, columns, COLUMNS):
        at = begin + column
        there = at < columns
        inputs = tl.load(x + r * row + at, there, 0)
        weights = tl.load(tiles + (g * columns + at)[:, None] * LANES + lane[None, :], there[:, None], 0)
        ones = _popcount((inputs[:, None] & weights).to(tl.uint32))
        total += tl.sum(ones.to(tl.int32), 0)
    tl.store(out + r * width + g * LANES + lane, total)


@triton.jit
def _multiply(x, tiles, out, rows, row, columns, width, LANES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Computes the result of `_count` as a product of int8: a program unpacks the bits of ROWS rows and of one tile."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    g = tl.program_id(1).to(tl.int64)
    lane, bit = tl.arange(0, LANES), tl.arange(0, 8 * COLUMNS)
    total = tl.zeros((ROWS, LANES), tl.int32)
    for begin in range(0, columns, COLUMNS):
        at, place = begin + bit // 8, (bit % 8).to(tl.uint8)
        there = at < columns
        inputs = tl.load(x + r[:, None] * row + at[None, :], (r < rows)[:, None] & there[None, :], 0)
        weights = tl.load(tiles + (g * columns + at)[:, None] * LANES + lane[None, :], there[:, None], 0)
        a, b = (inputs >> place[None, :]) & 1, (weights >> place[:, None]) & 1
        total += tl.dot(a.to(tl.int8), b.to(tl.int8), out_dtype=tl.int32)
    tl.store(out + r[:, None] * width + g * LANES + lane[None, :], total, (r < rows)[:, None])


def matches(x: Tensor, tiles: Tensor) -> Tensor:
    """Returns the number of ones that each row of bits has in common with each output: int32 [rows, 64 · tiles].

    Args:
        x: packed bits, uint8 [rows, ≥ bytes of the tiles].
        tiles: the weights, see `bnn_exp.bits.reference.to_tiles`.
    """
    rows, row, groups, columns = sizes(x, tiles, "bit")
    x, tiles = x.contiguous(), tiles.contiguous()
    out = x.new_empty((rows, LANES * groups), dtype=torch.int32)
    if rows and rows < _ROWS:
        _count[(rows, groups)](x, tiles, out, row, columns, LANES * groups, LANES, _COLUMNS)
    elif rows:
        grid = (triton.cdiv(rows, _ROWS), groups)
        _multiply[grid](x, tiles, out, rows, row, columns, LANES * groups, LANES, _COLUMNS, _ROWS)
    return out


def bit_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of packed bits x, int32 [batch, outputs]; see `bnn_exp.bits.operators`."""
    check_outputs(outputs, tiles.shape[0])
    sums = matches(x, tiles)[:, :outputs]
    return sums.contiguous() if zero == 0 else 2 * sums - reference.unpacked(x[:, : tiles.shape[1]], torch.int32).sum(1, True)


def pixel_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of pixels x, int32 [batch, outputs]; see `bnn_exp.bits.operators`."""
    rows, _, _, columns = sizes(x, tiles, "pixel")
    check_outputs(outputs, tiles.shape[0])
    places = torch.arange(8, device=x.device)
    planes = reference.planes(x).view(8 * rows, columns)
    sums = (matches(planes, tiles)[:, :outputs].unflatten(0, (rows, 8)) << places[:, None]).sum(1)
    return (sums if zero == 0 else 2 * sums - x.sum(1, keepdim=True)).to(torch.int32)


def bit_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of bits x; see `bnn_exp.bits.operators`."""
    check_thresholds(thresholds, inverted, tiles)
    return reference.steps(bit_sums(x, tiles, len(thresholds), zero), thresholds, inverted)


def pixel_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of pixels x; see `bnn_exp.bits.operators`."""
    check_thresholds(thresholds, inverted, tiles)
    return reference.steps(pixel_sums(x, tiles, len(thresholds), zero), thresholds, inverted)


real_product = reference.real_product
