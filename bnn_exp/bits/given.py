"""The arguments of the operator that does a rule's step on one tensor, for the kernels of every device."""

from typing import NamedTuple

import torch
from torch import Tensor


class Given(NamedTuple):
    """The arguments of a rule's operator. `bnn_exp.optim.fused.Fused` describes these arguments."""

    g: Tensor
    w: Tensor
    columns: int
    state: list[Tensor]
    strength: Tensor
    constants: list[float]
    step: Tensor
    key: int
    flips: Tensor

    @property
    def rows(self) -> int:
        """The number of rows of bits."""
        return len(self.w)

    @property
    def bits(self) -> int:
        """The number of bits."""
        return len(self.w) * self.columns

    @property
    def packed(self) -> bool:
        """True if eight bits share a byte."""
        return self.w.dtype == torch.uint8

    @property
    def floats(self) -> list[Tensor]:
        """The tensors of the state with one float32 for each bit."""
        return [t for t in self.state if t.dtype == torch.float32 and t.dim()]

    @property
    def counters(self) -> Tensor | None:
        """The tensor of the state with several counters to a byte, or None."""
        return next((t for t in self.state if t.dtype == torch.uint8), None)
