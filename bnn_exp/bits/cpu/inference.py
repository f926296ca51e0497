"""The operators of `bnn_exp.bits.operators` on a CPU: they check sizes, reserve memory and divide the work among threads."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.bits.checks import check_outputs, check_thresholds, sizes
from bnn_exp.bits.cpu.kernels import pixels, products
from bnn_exp.bits.cpu.threads import share
from bnn_exp.bits.reference import LANES

THREAD_WORK = (
    2**18
)  # the least work of one thread: bytes of input times tiles. Less work is done faster without waking a thread
_REAL_ROWS = 16  # from 16 rows on, torch's product of unpacked weights is faster than our kernel (measured: 1024² weights)


def bit_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of packed bits x, int32 [batch, outputs]; see `bnn_exp.bits.operators`."""
    return _sums(products.bit_product, x, tiles, sizes(x, tiles, "bit"), outputs, zero)


def pixel_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of pixels x, int32 [batch, outputs]; see `bnn_exp.bits.operators`."""
    return _sums(pixels.pixel_product, x, tiles, sizes(x, tiles, "pixel"), outputs, zero)


def bit_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of bits x; see `bnn_exp.bits.operators`."""
    return _steps(products.bit_product, x, tiles, sizes(x, tiles, "bit"), thresholds, inverted, zero)


def pixel_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of pixels x; see `bnn_exp.bits.operators`."""
    return _steps(pixels.pixel_product, x, tiles, sizes(x, tiles, "pixel"), thresholds, inverted, zero)


def real_product(x: Tensor, tiles: Tensor, outputs: int, zero: float, one: float) -> Tensor:
    """Returns the sums Σ x·w of real numbers x, [batch, outputs] of x's dtype; see `bnn_exp.bits.operators`."""
    rows, inputs, groups, columns = sizes(x, tiles, "real")
    check_outputs(outputs, groups)
    if rows >= _REAL_ROWS or x.dtype is not torch.float32:
        return reference.real_product(x, tiles, outputs, zero, one)
    x, tiles = F.pad(x, (0, 8 * columns - inputs)).contiguous(), tiles.contiguous()
    out = torch.empty(rows, LANES * groups)
    sizes_and_values = 32 * columns, rows, tiles.data_ptr(), columns, 0, groups, float(zero), float(one)
    products.real_product(x.data_ptr(), *sizes_and_values, out.data_ptr(), 4 * LANES * groups)
    return out if outputs == LANES * groups else out[:, :outputs].contiguous()


def _sums(kernel: Callable, x: Tensor, tiles: Tensor, shape: tuple, outputs: int, zero: int) -> Tensor:
    rows, row, groups, columns = shape
    check_outputs(outputs, groups)
    x, tiles = x.contiguous(), tiles.contiguous()
    out = torch.empty(rows, LANES * groups, dtype=torch.int32)
    run = kernel if rows * row * groups < 2 * THREAD_WORK else partial(_in_parts, kernel)
    run(x.data_ptr(), row, rows, tiles.data_ptr(), columns, 0, groups, zero, 0, 0, out.data_ptr(), 4 * LANES * groups)
    return out if outputs == LANES * groups else out[:, :outputs].contiguous()


def _steps(kernel: Callable, x: Tensor, tiles: Tensor, shape: tuple, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    rows, row, groups, columns = shape
    check_thresholds(thresholds, inverted, tiles)
    x, tiles, thresholds, inverted = x.contiguous(), tiles.contiguous(), thresholds.contiguous(), inverted.contiguous()
    out = torch.empty(rows, LANES // 8 * groups, dtype=torch.uint8)
    run = kernel if rows * row * groups < 2 * THREAD_WORK else partial(_in_parts, kernel)
    limits = thresholds.data_ptr(), inverted.data_ptr()
    run(x.data_ptr(), row, rows, tiles.data_ptr(), columns, 0, groups, zero, *limits, out.data_ptr(), LANES // 8 * groups)
    return out


def _in_parts(
    kernel: Callable, x: int, row: int, rows: int, tiles: int, columns: int, first: int, last: int, *rest: Any
) -> None:
    """Calls kernel(x, row, …) once in each of several threads. Each call computes some of the rows, or some of the tiles."""
    *constants, out, out_row = rest

    def of_rows(begin: int, end: int) -> None:
        kernel(x + begin * row, row, end - begin, tiles, columns, first, last, *constants, out + begin * out_row, out_row)

    def of_tiles(begin: int, end: int) -> None:
        kernel(x, row, rows, tiles, columns, begin, end, *constants, out, out_row)

    threads = min(torch.get_num_threads(), rows * row * (last - first) // THREAD_WORK)
    if rows >= LANES * threads:
        share(of_rows, rows, threads)
    else:
        share(of_tiles, last, threads)
