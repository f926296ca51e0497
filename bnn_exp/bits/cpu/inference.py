"""The operators of `bnn_exp.bits.operators` on a CPU: memory, threads and the numba kernels."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.bits.checks import check_outputs, check_thresholds, sizes
from bnn_exp.bits.cpu import kernels
from bnn_exp.bits.reference import LANES

_THREAD_WORK = 2**18  # bytes of input × tiles that a thread must have to do, to be worth its waking
_REAL_ROWS = 16  # from which on unpacking the weights and torch's product are the faster way, measured at 1024²


def bit_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    return _sums(kernels.bit_product, x, tiles, sizes(x, tiles, "bit"), outputs, zero)


def pixel_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    return _sums(kernels.pixel_product, x, tiles, sizes(x, tiles, "pixel"), outputs, zero)


def bit_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, flips: Tensor, zero: int) -> Tensor:
    return _steps(kernels.bit_product, x, tiles, sizes(x, tiles, "bit"), thresholds, flips, zero)


def pixel_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, flips: Tensor, zero: int) -> Tensor:
    return _steps(kernels.pixel_product, x, tiles, sizes(x, tiles, "pixel"), thresholds, flips, zero)


def real_product(x: Tensor, tiles: Tensor, outputs: int, zero: float, one: float) -> Tensor:
    rows, inputs, groups, columns = sizes(x, tiles, "real")
    check_outputs(outputs, groups)
    if rows >= _REAL_ROWS or x.dtype is not torch.float32:
        return reference.real_product(x, tiles, outputs, zero, one)
    x, tiles = F.pad(x, (0, 8 * columns - inputs)).contiguous(), tiles.contiguous()
    out = torch.empty(rows, LANES * groups)
    sizes_and_values = 32 * columns, rows, tiles.data_ptr(), columns, 0, groups, float(zero), float(one)
    kernels.real_product(x.data_ptr(), *sizes_and_values, out.data_ptr(), 4 * LANES * groups)
    return out if outputs == LANES * groups else out[:, :outputs].contiguous()


def _sums(kernel: Callable, x: Tensor, tiles: Tensor, shape: tuple, outputs: int, zero: int) -> Tensor:
    rows, row, groups, columns = shape
    check_outputs(outputs, groups)
    x, tiles = x.contiguous(), tiles.contiguous()
    out = torch.empty(rows, LANES * groups, dtype=torch.int32)
    run = kernel if rows * row * groups < 2 * _THREAD_WORK else partial(_in_parts, kernel)
    run(x.data_ptr(), row, rows, tiles.data_ptr(), columns, 0, groups, zero, 0, 0, out.data_ptr(), 4 * LANES * groups)
    return out if outputs == LANES * groups else out[:, :outputs].contiguous()


def _steps(kernel: Callable, x: Tensor, tiles: Tensor, shape: tuple, thresholds: Tensor, flips: Tensor, zero: int) -> Tensor:
    rows, row, groups, columns = shape
    check_thresholds(thresholds, flips, tiles)
    x, tiles, thresholds, flips = x.contiguous(), tiles.contiguous(), thresholds.contiguous(), flips.contiguous()
    out = torch.empty(rows, LANES // 8 * groups, dtype=torch.uint8)
    run = kernel if rows * row * groups < 2 * _THREAD_WORK else partial(_in_parts, kernel)
    limits = thresholds.data_ptr(), flips.data_ptr()
    run(x.data_ptr(), row, rows, tiles.data_ptr(), columns, 0, groups, zero, *limits, out.data_ptr(), LANES // 8 * groups)
    return out


def _in_parts(kernel: Callable, x: int, row: int, rows: int, tiles: int, columns: int, first: int, last: int, *rest) -> None:
    """What kernel(x, row, …) does, by as many of torch's threads as are worth it: each takes some rows, or some tiles."""
    *constants, out, out_row = rest

    def of_rows(begin: int, end: int) -> None:
        kernel(x + begin * row, row, end - begin, tiles, columns, first, last, *constants, out + begin * out_row, out_row)

    def of_tiles(begin: int, end: int) -> None:
        kernel(x, row, rows, tiles, columns, begin, end, *constants, out, out_row)

    threads = min(torch.get_num_threads(), rows * row * (last - first) // _THREAD_WORK)
    if rows >= LANES * threads:
        share(of_rows, rows, threads)
    else:
        share(of_tiles, last, threads)


_pool: ThreadPoolExecutor | None = None


def share(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call work(begin, end) for `threads` parts of range(count) at the same time; this thread takes the first of them."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), "bits")
    bounds = [count * i // threads for i in range(threads + 1)]
    others = [_pool.submit(work, *bounds[i : i + 2]) for i in range(1, threads)]
    work(*bounds[:2])
    for other in others:
        other.result()


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork
