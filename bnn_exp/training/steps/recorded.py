"""What a step asks of a GPU, said once and then repeated in one call: CUDA graphs.

The forward and backward pass of a small network are some two hundred kernels, and Python takes longer to ask for them than a
GPU to run them. Shapes, and where tensors lie, are the same in every step, so that all of it can be recorded.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Graphs:
    """Does what `work` does, for each shape of its arguments by a graph of its own.

    The first call of a shape works as usual, and readies what is made when it is first needed; the second records; those after
    it replay. What is recorded lies in tensors that every replay writes anew: results are to be used before the next call.

    Args:
        work: takes tensors on a GPU and gives tensors there, in any structure. It may not wait for the GPU, and depends on
            nothing but its arguments and what lies in tensors that stay where they are, such as parameters.
        required: whether a recording that fails is an error; else the log says so, and all calls work as usual.

    Raises:
        RuntimeError: a recording that is required fails.
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
            return self._aside(arguments)
        if shapes not in self.recorded:
            try:
                self.recorded[shapes] = self._record(arguments)
            except RuntimeError as error:
                if self.required:
                    raise
                self.failed = True
                log.warning("steps are not recorded as CUDA graphs (engine.graphs=false says so beforehand): %s", error)
                return self._aside(arguments)
        graph, places, results = self.recorded[shapes]
        for place, x in zip(places, arguments, strict=True):
            place.copy_(x)
        graph.replay()
        return results

    def _aside(self, arguments: tuple[Tensor, ...]) -> Any:
        """The work on the stream on which it will be recorded, as torch asks for before a recording."""
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
