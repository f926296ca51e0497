"""Packed networks that one compiled call computes on a CPU, from pixels to logits or classes (`bnn_exp.bits.cpu.network`)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bnn_exp.deploy.predicting import Pixels, Predicting
from bnn_exp.deploy.replayed import Replayed
from bnn_exp.nn import device, operators
from bnn_exp.nn.function import transforming

if TYPE_CHECKING:
    from bnn_exp.bits.cpu.network import Network  # at run time the first use imports numba


class InOneCall(Replayed, Predicting):
    """A base class of packed networks. A subclass defines `takes`, `_network` and `_by_layers`.

    Hooks of single layers are not called where one compiled call computes all layers.
    """

    compiled: "Network | None" = None  # made by the first call on a CPU

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits, float32 [batch, classes], of pixels, uint8 [batch, …]."""
        if x.dtype != torch.uint8:
            raise ValueError(f"pixels are {x.dtype}: a packed network takes uint8")
        network = self._in_one_call(x) if _is_plain(x) and x.dim() > 1 and self.takes(x.shape[1:]) else None
        return self.replays(self._logits, x) if network is None else self._finished(network.logits(x))

    def _network(self) -> "Network":
        """Returns the compiled network."""
        raise NotImplementedError

    def _by_layers(self, x: Tensor) -> Tensor:
        """Returns the logits of pixels, float32 [batch, classes], computed layer by layer."""
        raise NotImplementedError

    def _logits(self, x: Tensor) -> Tensor:
        return self._finished(self._by_layers(x))

    def _finished(self, logits: Tensor) -> Tensor:
        """Returns the results of the network for its logits: binarised ones, or the logits themselves."""
        return logits

    def _finishes(self) -> bool:
        """Returns True if `_finished` changes logits."""
        return False

    def _scores(self, pixels: Pixels) -> Pixels:
        network = self._in_one_call(pixels) if _is_plain(pixels) and not self._finishes() else None
        return super()._scores(pixels) if network is None else network.logits(pixels)

    def _classes(self, pixels: Pixels) -> Pixels:
        network = self._in_one_call(pixels) if _is_plain(pixels) and not self._finishes() else None
        return super()._classes(pixels) if network is None else network.classes(pixels)

    def _in_one_call(self, batch: Pixels) -> "Network | None":
        """Returns the network that computes a batch in one compiled call; None if its layers are computed one by one.

        Args:
            batch: plain pixels of a shape that the network takes.
        """
        network = self.compiled
        if network is None and all(map(_is_readable, (*self.buffers(), *self.parameters()))):
            network = self.compiled = self._network()
        return None if network is None or network.better_by_layers(len(batch)) else network

    def _apply(self, *arguments: Any, **named: Any) -> "InOneCall":
        self.compiled = None
        super()._apply(*arguments, **named)
        return self

    def load_state_dict(self, *arguments: Any, **named: Any) -> Any:
        self.compiled = None  # assign=True replaces the tensors
        return super().load_state_dict(*arguments, **named)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"compiled": None}  # a compiled network holds addresses of this process


def _is_plain(x: Tensor | np.ndarray) -> bool:
    """Returns True for numbers in the CPU's memory whose address a kernel may read: nothing traces or transforms operators."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or operators.kernels_everywhere or transforming():
        return False
    return isinstance(x, np.ndarray) or (type(x) is Tensor and device.on_host(x))


def _is_readable(held: Tensor) -> bool:
    """Returns True if a kernel for a CPU can read the tensor of a layer, which a user may have moved or converted."""
    return held.is_cpu and held.is_contiguous() and held.dtype in (torch.uint8, torch.int32, torch.int64, torch.float32)
