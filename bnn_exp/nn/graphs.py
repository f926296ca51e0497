"""CUDA graphs of a function: recorded once for each combination of arguments, then replayed by one call.

A graph may have branches: the work of a branch runs beside the rest of the graph. `beside` opens a branch.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import inf
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)
BRANCHES = 4  # the most branches that run at the same time


@cache
def _streams(device: int) -> list[torch.cuda.Stream]:
    """Returns the streams of all branches on a GPU. cuBLAS keeps memory for each stream, so recordings share them."""
    return [torch.cuda.Stream(device) for _ in range(BRANCHES)]


class _Branches:
    """The branches of a recording. A branch is a CUDA stream, and the tensors that its kernels read."""

    def __init__(self) -> None:
        self.open: list[tuple[torch.cuda.Stream, tuple]] = []

    @contextmanager
    def one(self, kept: tuple) -> Iterator[None]:
        stream = _streams(torch.cuda.current_device())[len(self.open) % BRANCHES]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        self.open.append((stream, kept))

    def join(self) -> None:
        for stream, _ in self.open:
            torch.cuda.current_stream().wait_stream(stream)
        self.open.clear()


_branches: _Branches | None = None  # those of the recording that runs; one recording runs at a time


@contextmanager
def beside(*kept: Any) -> Iterator[None]:
    """Context manager: puts the work of the body into a branch of the CUDA graph that is recorded, if any.

    Later work does not wait for a branch before `join`, which a recording calls at its end. So later work must not read what
    the body writes.

    Args:
        kept: the tensors that the body reads and that may be freed before `join`. The branch holds them until then.
    """
    if _branches is None:
        yield
    else:
        with _branches.one(kept):
            yield


def join() -> None:
    """Makes later work of a recording wait for all branches."""
    if _branches is not None:
        _branches.join()


class Graphs:
    """A function that runs `work` by CUDA graphs, one graph for each combination of arguments: shapes of tensors, and integers.

    The first call with a combination runs without a CUDA graph, because libraries and optimizers then allocate memory. The
    second call records a graph, and every later call replays it. A replay overwrites the results of the replay before, so
    the caller uses results before the next call.

    Args:
        work: takes tensors on a GPU and integers, and returns tensors on the same GPU, in any structure. `work` must not wait
            for the GPU, and depends only on its arguments and on tensors that keep their addresses, such as parameters.
        required: raise an exception if a recording fails; else log a warning once, and run all calls without a graph.
        most: the most graphs to keep. Calls with further combinations run without a graph.
        failing: the warning if a recording fails; the reason follows.
        anyone: takes True if the recording has failed in this process. Returns True if the recording has failed in this or in
            another rank. With NCCL all ranks must replay, or none.

    Raises:
        RuntimeError: a required recording fails.
    """

    def __init__(
        self,
        work: Callable[..., Any],
        required: bool = False,
        most: float = inf,
        failing: str = "work is not recorded as a CUDA graph",
        anyone: Callable[[bool], bool] = bool,
    ):
        self.work, self.required, self.failed, self.most, self.failing = work, required, False, most, failing
        self.anyone = anyone
        self.stream: torch.cuda.Stream | None = None
        self.known: set[tuple] = set()
        self.recorded: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Any], Any]] = {}

    def forget(self) -> None:
        """Frees all graphs and their memory, after the GPU has ended its work."""
        if self.recorded:
            torch.cuda.current_stream().synchronize()
        self.known.clear()
        self.recorded.clear()

    def __call__(self, *arguments: Tensor | int) -> Any:
        shapes = tuple([(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in arguments])
        recorded = None if self.failed else self.recorded.get(shapes) or self._new(shapes, arguments)
        if recorded is None:
            # Triton compiles a kernel again for another alignment, and nothing should compile while CUDA records. So calls
            # without a graph take arguments that are aligned as in the recording.
            return self._run(_copies(arguments))
        graph, places, results = recorded
        for place, x in zip(places, arguments, strict=True):
            if isinstance(x, Tensor):
                place.copy_(x)
        graph.replay()
        return results

    def _new(self, shapes: tuple, arguments: tuple[Tensor | int, ...]) -> tuple | None:
        """Returns a new graph for the second call with a combination of arguments; None if a call gets no graph."""
        if shapes not in self.known:
            self.known.add(shapes)
            return None
        if len(self.recorded) >= self.most:
            return None
        reason = ""
        try:
            self.recorded[shapes] = self._record(arguments)
        except RuntimeError as error:
            if self.required:
                raise
            reason = str(error)
        if self.anyone(bool(reason)):
            self.failed = True
            self.recorded.pop(shapes, None)
            log.warning("%s: %s", self.failing, reason or "another rank cannot record them")
        return self.recorded.get(shapes)

    def _run(self, arguments: Sequence[Tensor | int]) -> Any:
        """Runs `work` without a CUDA graph, but on the CUDA stream of later recordings: torch requires such a run first."""
        here = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            results = self.work(*arguments)
        here.wait_stream(self.stream)
        return results

    def _record(self, arguments: tuple[Tensor | int, ...]) -> tuple[torch.cuda.CUDAGraph, list[Any], Any]:
        global _branches
        places = _copies(arguments)
        pool = next((graph.pool() for graph, _, _ in self.recorded.values()), None)
        graph = torch.cuda.CUDAGraph()
        # Another thread, such as NCCL's watchdog, may query the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            _branches = _Branches()
            try:
                results = self.work(*places)
                join()
            finally:
                _branches = None
        return graph, places, results


def _copies(arguments: Sequence[Tensor | int]) -> list[Any]:
    """Returns the arguments, each tensor as a copy. CUDA aligns the addresses of the copies."""
    with torch.inference_mode(False):  # torch refuses later copies to a tensor that is made in the mode
        return [x.clone() if isinstance(x, Tensor) else x for x in arguments]
