"""Work that several threads of a CPU share. Kernels release the interpreter's lock: Python's threads run them in parallel."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None


def share(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Calls work(begin, end) for `threads` parts of range(count) at the same time; the calling thread takes the first part."""
    global _pool
    if threads == 1:
        work(0, count)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), "bits")
    bounds = [count * i // threads for i in range(threads + 1)]
    others = [_pool.submit(work, *bounds[i : i + 2]) for i in range(1, threads)]
    work(*bounds[:2])
    for other in others:
        other.result()


def share_out(work: Callable[[int, int], None], count: int) -> None:
    """Calls work(begin, end) for parts of range(count), one part for each of torch's threads."""
    share(work, count, max(1, min(torch.get_num_threads(), count)))


def share_chunks(work: Callable[[int, int], None], rows: int, chunk: int) -> None:
    """Calls work(begin, end) for parts of range(rows), one for each of torch's threads. A part consists of whole chunks."""
    share_out(lambda first, last: work(first * chunk, min(rows, last * chunk)), -(-rows // chunk))


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # a forked process has no running threads, so it needs a new pool
