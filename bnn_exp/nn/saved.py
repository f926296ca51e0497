"""Notes about tensors of few different values. By these notes a step in less memory stores a tensor without a look at it.

A layer knows what it makes: values of bits, or sums of such values. To look at a tensor on a GPU means to wait for the GPU.
While no step asks for notes (`noting`), a note costs one comparison.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TwoValues:
    """The note of a tensor that holds only `low` and `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Whole:
    """The note of a tensor of numbers n / `unit`, where each n is a whole number that fits `dtype`."""

    dtype: torch.dtype
    unit: int = 1


_notes: dict[Any, TwoValues | Whole] | None = None  # by storage and version, see `_place`; None: nobody asks for notes


@contextmanager
def noting() -> Iterator[None]:
    """Keeps the notes that are made in the body of a `with` statement, until the body ends."""
    global _notes
    before, _notes = _notes, {}
    try:
        yield
    finally:
        _notes = before


def note_values(t: Tensor, low: float, high: float) -> Tensor:
    """Notes that `t` holds only `low` and `high`, and returns `t`."""
    if _notes is not None:
        _notes[_place(t)] = TwoValues(low, high)
    return t


def note_pixels(t: Tensor) -> Tensor:
    """Notes that `t` holds only whole numbers from 0 to 255, and returns `t`."""
    if _notes is not None:
        _notes[_place(t)] = Whole(torch.uint8)
    return t


def note_sums(t: Tensor, x: Tensor, v: Tensor, terms: int) -> Tensor:
    """Notes that `t` holds sums of `terms` products of elements of x and v, if both are noted values, and returns `t`.

    Values are multiples of ½, so the products are multiples of ¼. Sums that do not fit int16 are not noted.
    """
    if _notes is not None and isinstance(of_x := known(x), TwoValues) and isinstance(of_v := known(v), TwoValues):
        ends = [abs(end) for values in (of_x, of_v) for end in (values.low, values.high)]
        unit = 1 if all(end == int(end) for end in ends) else 4
        if terms * max(ends) ** 2 * unit <= torch.iinfo(torch.int16).max:
            _notes[_place(t)] = Whole(torch.int16, unit)
    return t


def known(t: Tensor) -> TwoValues | Whole | None:
    """Returns the note about a tensor; None without a note."""
    return None if _notes is None else _notes.get(_place(t))


def _place(t: Tensor) -> Any:
    """Returns a reference to the storage of a tensor, and the version of the tensor. A write in place changes the version.

    Views share the storage and the version. No other storage gets an equal reference while this reference exists.
    """
    from torch.multiprocessing.reductions import StorageWeakRef

    return StorageWeakRef(t.untyped_storage()), t._version
