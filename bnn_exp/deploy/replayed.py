"""Packed networks on a GPU replay their forward pass as a CUDA graph: one call launches all kernels."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.nn.function import takes_kernels
from bnn_exp.nn.graphs import Graphs

MOST = 8  # graphs of a network: one for each shape of its input. Calls with further shapes run without a graph.
FAILING = "a packed network is not recorded as a CUDA graph, and runs more slowly"


class Replays:
    """The CUDA graphs of one function: every call must name the same function. A copy of this object has no graphs."""

    def __init__(self) -> None:
        self.graphs: Graphs | None = None
        self.stream: Any = None  # the stream of the first call; calls from two streams would overwrite each other's inputs
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return Replays, ()

    def forget(self) -> None:
        """Frees the graphs, after the work of the GPU has ended. Later calls record new ones."""
        if self.graphs is not None:
            torch.cuda.synchronize()
        self.graphs = self.stream = None

    def __call__(self, work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Returns work(x). On a GPU a graph computes the result, from the second call with a shape on."""
        if not _recordable(x):
            return work(x)
        if x.is_cuda and x.get_device() != torch.cuda.current_device():
            with torch.cuda.device_of(x):
                return self(work, x)
        stream = torch.cuda.current_stream()
        self.stream = self.stream or stream
        if stream != self.stream:
            return work(x)
        with self.lock:
            self.graphs = self.graphs or Graphs(partial(_without_modes, work), most=MOST, failing=FAILING)
            return self.graphs(x).clone()  # the next replay overwrites the result


def _without_modes(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns work(x) as an ordinary tensor, because a graph that is recorded in torch.inference_mode outlives that mode."""
    with torch.inference_mode(False), torch.no_grad():
        return work(x)


def _recordable(x: Tensor) -> bool:
    """Returns True if a graph can compute the call: on a GPU, outside of compilers, transforms, autocast and other graphs."""
    if not takes_kernels(x) or x.requires_grad or torch.is_autocast_enabled(x.device.type):
        return False
    return not torch.cuda.is_current_stream_capturing()


class Replayed(nn.Module):
    """A base class of packed networks that records its forward pass. A move to another device or dtype frees the graphs."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.replays = Replays()

    def _apply(self, *arguments: Any, **named: Any) -> "Replayed":
        self.replays.forget()
        return super()._apply(*arguments, **named)
