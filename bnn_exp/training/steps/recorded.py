"""CUDA graphs: a step is recorded once for each batch size, and then replayed by one call.

The step of a small network launches about two hundred kernels. Python takes longer to launch them than a GPU takes to run them.
Shapes and addresses of tensors are the same in every step, so one graph can hold the whole step.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bnn_exp.training.steps.dense import Dense
    from bnn_exp.training.steps.ranks import Exchanged

log = logging.getLogger(__name__)


class Recorded:
    """A step that replays another step: choice of the samples, batch, passes, exchange of gradients, rule, optimizers, sums.

    Before each replay one copy announces all numbers that the graph reads: where the samples begin in the permutation of the
    epoch, the number of the step, strengths and learning rates. `after` counts the step in Python.

    Args:
        step: the step to record, on a GPU.
        required: raise an exception if the recording fails; else log a warning, and run the step without a graph.
    """

    def __init__(self, step: "Dense | Exchanged", required: bool = False):
        self.step, self.graphs, self.size = step, Graphs(self._train, required), 0

    def _train(self, size: int) -> tuple[Tensor, Tensor]:
        return self.step(self.step.batches.chosen(size))

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.graphs(len(rows))

    def before(self, rows: Tensor, epoch: int, batch: int) -> None:
        """Prepares the step, see `Dense.before`. If the batch size grows with this epoch, frees the graphs of the old size."""
        if (size := self.step.batches.size(epoch)) != self.size:
            self.size = size
            self.graphs.forget()
        self.step.before(rows, epoch, batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)


class Graphs:
    """A function that runs `work` by CUDA graphs, one graph for each combination of arguments: shapes of tensors, and integers.

    The first call with a combination runs without a CUDA graph, because libraries and optimizers then allocate memory. The
    second call records a graph, and every later call replays it. A replay overwrites its results, so the caller uses them
    before the next call.

    Args:
        work: takes tensors on a GPU and integers, and returns tensors on the same GPU, in any structure. `work` must not wait
            for the GPU. It may depend only on its arguments and on tensors that keep their addresses, such as parameters.
        required: raise an exception if a recording fails; else log a warning once, and run all calls without a graph.

    Raises:
        RuntimeError: a required recording fails.
    """

    def __init__(self, work: Callable[..., Any], required: bool = False):
        self.work, self.required, self.failed = work, required, False
        self.stream: torch.cuda.Stream | None = None
        self.known: set[tuple] = set()
        self.recorded: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Any], Any]] = {}

    def forget(self) -> None:
        """Frees all graphs and their memory. Call this method when the GPU has no work."""
        self.known.clear()
        self.recorded.clear()

    def __call__(self, *arguments: Tensor | int) -> Any:
        shapes = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in arguments)
        if shapes not in self.known or self.failed:
            self.known.add(shapes)
            return self._run(arguments)
        if shapes not in self.recorded:
            try:
                self.recorded[shapes] = self._record(arguments)
            except RuntimeError as error:
                if self.required:
                    raise
                self.failed = True
                log.warning("steps are not recorded as CUDA graphs (engine.graphs=false avoids the attempt): %s", error)
                return self._run(arguments)
        graph, places, results = self.recorded[shapes]
        for place, x in zip(places, arguments, strict=True):
            if isinstance(x, Tensor):
                place.copy_(x)
        graph.replay()
        return results

    def _run(self, arguments: tuple[Tensor | int, ...]) -> Any:
        """Runs `work` without a CUDA graph, but on the CUDA stream of later recordings: torch requires one such run before."""
        here = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            results = self.work(*arguments)
        here.wait_stream(self.stream)
        return results

    def _record(self, arguments: tuple[Tensor | int, ...]) -> tuple[torch.cuda.CUDAGraph, list[Any], Any]:
        places = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
        pool = next((graph.pool() for graph, _, _ in self.recorded.values()), None)
        graph = torch.cuda.CUDAGraph()
        # Another thread, such as NCCL's watchdog, may query the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            results = self.work(*places)
        return graph, places, results
