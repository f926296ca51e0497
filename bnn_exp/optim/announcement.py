"""The numbers that Python gives to a training step on a GPU: step numbers, strengths, learning rates, the place of the batch.

A step that is recorded as a CUDA graph cannot read numbers from Python. One copy writes all of them to one tensor before the
step, and the step's kernels read this tensor when they run.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Announcing(Protocol):
    """An object whose numbers change from step to step."""

    announced: Tensor | None  # the part of the announcement with the object's numbers, int64 [numbers]; None before any

    def numbers(self) -> np.ndarray | None:
        """Returns the numbers of the coming step, int64; None if the object computes on the CPU and reads them from Python."""


class Announcement:
    """Writes the numbers of several objects to the GPU by one copy a step.

    Every object gets its part of one tensor. The tensor keeps its address as long as no object changes its count of numbers.
    """

    def __init__(self, device: torch.device, *objects: Announcing):
        self.device, self.objects = device, objects
        self.parts: Sequence[Tensor] = ()
        self.sizes: list[int] = []  # the numbers of elements of the parts
        self.whole = torch.empty(0, dtype=torch.int64, device=device)

    def send(self) -> None:
        """Asks every object for its numbers of the coming step, and copies them to the GPU. On a CPU nothing is copied."""
        found = [(each, numbers) for each in self.objects if (numbers := each.numbers()) is not None]
        if not found:
            return
        sizes = [len(numbers) for _, numbers in found]
        if sizes != self.sizes:
            self.sizes = sizes
            self.whole = torch.empty(sum(sizes), dtype=torch.int64, device=self.device)
            self.parts = self.whole.split(sizes)
        for (each, _), part in zip(found, self.parts, strict=True):
            each.announced = part
        self.whole.copy_(torch.from_numpy(np.concatenate([numbers for _, numbers in found])), non_blocking=True)


def constants_of(groups: Iterable[dict[str, Any]], announced: Collection[str]) -> tuple:
    """Returns the plain values in parameter groups, except those with a name in `announced`."""
    plain = (bool, int, float, str, tuple)
    return tuple(value for group in groups for name, value in group.items() if name not in announced and type(value) in plain)


def from_floats(numbers: Iterable[float]) -> np.ndarray:
    """Returns numbers in the form of an announcement, int64: each is a float32 in the lower 4 of 8 bytes."""
    return np.array([*numbers], np.float32).view(np.uint32).astype(np.int64)


def floats(announced: Tensor) -> Tensor:
    """Returns the float32 numbers that `from_floats` has put into a part of an announcement: a view, [..., numbers]."""
    return announced.view(torch.float32)[..., ::2]
