"""CUDA graphs: a step is recorded once for each batch size, and then replayed by one call.

The step of a small network launches about two hundred kernels. Python takes longer to launch them than a GPU takes to run them.
Shapes and addresses of tensors are the same in every step, so one graph can hold the whole step.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnn_exp.training.steps.dense import Dense

log = logging.getLogger(__name__)


class Recorded:
    """A step that replays another step: batch, passes, rule and optimizers.

    `before` and `after` run in Python around each replay. They write the number of the step, the strengths and the learning
    rates into tensors that the graph reads.

    Args:
        step: the step to record, on a GPU.
        required: raise an exception if the recording fails; else log a warning, and run the step without a graph.
    """

    def __init__(self, step: Dense, required: bool = False):
        self.step, self.graphs = step, Graphs(step, required)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.graphs(rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)


class Graphs:
    """A function that runs `work` by CUDA graphs, one graph for each combination of argument shapes.

    The first call with a shape runs without a graph: libraries and optimizers allocate their memory. The second call records a
    graph, and every later call replays it. A replay overwrites its results, so the caller uses them before the next call.

    Args:
        work: maps tensors on a GPU to tensors on it, in any structure. It must not wait for the GPU. It may depend only on its
            arguments and on tensors that keep their addresses, such as parameters.
        required: raise an exception if a recording fails; else log a warning once, and run all calls without a graph.

    Raises:
        RuntimeError: a required recording fails.
    """

    def __init__(self, work: Callable[..., Any], required: bool = False):
        self.work, self.required, self.failed = work, required, False
        self.stream: torch.cuda.Stream | None = None
        self.known: set[tuple] = set()
        self.recorded: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}

    def __call__(self, *arguments: Tensor) -> Any:
        shapes = tuple((x.shape, x.dtype) for x in arguments)
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
            place.copy_(x)
        graph.replay()
        return results

    def _run(self, arguments: tuple[Tensor, ...]) -> Any:
        """Runs the work without a graph, on the stream that records later: torch requires such a run before a recording."""
        here = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            results = self.work(*arguments)
        here.wait_stream(self.stream)
        return results

    def _record(self, arguments: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        places = [x.clone() for x in arguments]
        pool = next((graph.pool() for graph, _, _ in self.recorded.values()), None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self.stream):
            results = self.work(*places)
        return graph, places, results
