"""The operators of `bnn_exp.bits.ops` on a CPU: memory, threads and the numba kernels."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import kernels, reference
from bnn_exp.bits.checks import check_outputs, check_thresholds, sizes
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
    x, shape = F.pad(x, (0, 8 * columns - inputs)), (rows, 32 * columns, groups, columns)
    out = torch.empty((rows, LANES * groups))
    _run(kernels.real_product, x, tiles, shape, (float(zero), float(one)), out)
    return out if outputs == LANES * groups else out[:, :outputs].contiguous()


def _sums(kernel: Callable, x: Tensor, tiles: Tensor, shape: tuple, outputs: int, zero: int) -> Tensor:
    rows, _, groups, _ = shape
    check_outputs(outputs, groups)
    out = torch.empty((rows, LANES * groups), dtype=torch.int32)
    _run(kernel, x, tiles, shape, (zero, 0, 0), out)
    return out if outputs == LANES * groups else out[:, :outputs].contiguous()


def _steps(kernel: Callable, x: Tensor, tiles: Tensor, shape: tuple, thresholds: Tensor, flips: Tensor, zero: int) -> Tensor:
    rows, _, groups, _ = shape
    check_thresholds(thresholds, flips, tiles)
    thresholds, flips = thresholds.contiguous(), flips.contiguous()
    out = torch.empty((rows, LANES // 8 * groups), dtype=torch.uint8)
    _run(kernel, x, tiles, shape, (zero, thresholds.data_ptr(), flips.data_ptr()), out)
    return out


def _run(kernel: Callable, x: Tensor, tiles: Tensor, shape: tuple, constants: tuple, out: Tensor) -> None:
    """Fill `out`, by as many of torch's threads as are worth it: each takes some rows, or some tiles.

    `shape`: the rows of x, the bytes of one, the tiles, the bytes of each of their outputs.
    """
    x, tiles = x.contiguous(), tiles.contiguous()
    rows, row, groups, columns = shape
    start, weights, to, out_row = x.data_ptr(), tiles.data_ptr(), out.data_ptr(), out.stride(0) * out.itemsize
    threads = rows * row * groups // _THREAD_WORK
    if threads > 1:
        threads = min(threads, torch.get_num_threads())
    if threads <= 1:
        kernel(start, row, rows, weights, columns, 0, groups, *constants, to, out_row)
    elif rows >= LANES * threads:

        def of_rows(begin: int, end: int) -> None:
            at, into = start + begin * row, to + begin * out_row
            kernel(at, row, end - begin, weights, columns, 0, groups, *constants, into, out_row)

        share(of_rows, rows, threads)
    else:

        def of_tiles(first: int, last: int) -> None:
            kernel(start, row, rows, weights, columns, first, last, *constants, to, out_row)

        share(of_tiles, groups, threads)


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
