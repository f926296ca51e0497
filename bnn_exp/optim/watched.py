"""Flips of latent weights: the bits are kept from step to step, and compared with the new ones in one pass."""

from collections.abc import Iterable

import torch
from torch import Tensor

from bnn_exp.bits.latents import bits_above, follow
from bnn_exp.optim.in_place import written


class Watched:
    """The packed bits of latent weights, an eighth of a byte each, which follow the weights from step to step."""

    def __init__(self) -> None:
        self.bits: dict[int, Tensor] = {}  # by the number of the tensor; a recorded step reads their addresses
        self.seen: dict[int, tuple[int, int]] = {}  # version and address of each tensor, when its bits were last up to date

    @torch.no_grad()
    def prepare(self, tensors: Iterable[Tensor]) -> None:
        """Packs the bits of each tensor that others have written to since the last step. No graph records this call."""
        for i, p in enumerate(tensors):
            if self.seen.get(i) != written(p):
                bits = bits_above(p.reshape(-1), p.mean())
                self.bits[i] = self.bits[i].copy_(bits) if i in self.bits else bits
                self.seen[i] = written(p)

    @torch.no_grad()
    def follow(self, tensors: Iterable[Tensor], flips: Iterable[Tensor]) -> None:
        """Updates the bits of all tensors, and adds the numbers of their flips to `flips`, an int64 scalar for each tensor."""
        for i, (p, total) in enumerate(zip(tensors, flips, strict=True)):
            follow(p.reshape(-1), p.mean(), self.bits[i], total)
            self.seen[i] = written(p)
