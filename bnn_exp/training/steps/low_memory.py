"""The dense step in less memory (`engine.memory=lean`): it keeps the same numbers in fewer bytes.

Gradients: as soon as the backward pass has the gradient of a tensor of bits, the rule flips the bits and the gradient is freed.

Saved activations: a tensor of two values (bits, binary activations, windows) is stored as bits. A tensor of small whole numbers
or quarters (sums of bits, positions of a maximum) is stored as int16. Any other tensor stays as it is. Flips and losses equal
those of `engine.memory=fast`, to the bit.

On a CPU the content of a tensor decides how the step stores the tensor, so every model can use this step, also with layers of
plugins. On a GPU a look at the content would wait for the GPU, so the notes of the layers decide (`bnn_exp.nn.saved`). A tensor
without a note stays as it is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bnn_exp.bits import reference
from bnn_exp.nn import device, saved
from bnn_exp.optim.rule import Rule
from bnn_exp.training.memory.footprint import Footprint
from bnn_exp.training.steps.dense import Dense

_SMALLEST = 1024  # tensors of fewer elements stay as they are
_HEAD = 64  # elements to check first: they exclude most tensors of real numbers
_INT16 = torch.iinfo(torch.int16)


class LowMemory(Dense):
    """The dense step with compact saved activations, and with each gradient of bits freed as soon as the rule has used it."""

    rule: Rule

    def __init__(self, *parts: Any, **options: Any):
        super().__init__(*parts, **options)
        self.footprint = Footprint(self.network, Saving(self.network))
        for p in self.rule.tensors():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._use)

    def passes(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with saved.noting():
            return super().passes(x, labels)

    def _use(self, p: Tensor) -> None:
        """Flips bits of the tensor `p` by its gradient, and frees the gradient."""
        self.footprint.note_gradients()
        gradient, p.grad = p.grad, None
        self.rule.flip(p, gradient)


class Saving(saved_tensors_hooks):
    """Context manager: compresses the tensors that autograd saves, except parameters and buffers of `network`."""

    def __init__(self, network: nn.Module):
        held = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
        super().__init__(lambda t: t if t.untyped_storage().data_ptr() in held else compact(t), restored)


@dataclass(frozen=True)
class Bits:
    """A tensor of two values, stored as one bit per element in the order of memory; 1 stands for `high`."""

    data: Tensor  # uint8, a vector
    low: Tensor | float
    high: Tensor | float
    like: Tensor  # a tensor on the meta device, with the shape, strides and dtype of the original

    def restored(self) -> Tensor:
        count = self.like.numel()
        if device.on_host(self.data):
            bits = torch.from_numpy(np.unpackbits(self.data.numpy(), count=count, bitorder="little")).view(torch.bool)
        else:
            bits = reference.unpacked(self.data[None], torch.bool)[0, :count]
        return self._valued(bits).as_strided(self.like.shape, self.like.stride())

    def _valued(self, bits: Tensor) -> Tensor:
        """Returns the values of `bits`. `torch.where` would copy numbers of Python to the GPU, and wait."""
        if self.like.dtype == torch.bool:
            return bits
        if isinstance(self.low, Tensor):
            return torch.where(bits, self.high, self.low)
        return bits.to(self.like.dtype).mul_(self.high - self.low).add_(self.low)


@dataclass(frozen=True)
class Whole:
    """A tensor whose elements are whole multiples of 1/`unit`, stored as integers."""

    data: Tensor  # int16 or uint8: the elements times `unit`
    unit: int
    dtype: torch.dtype

    def restored(self) -> Tensor:
        numbers = self.data.to(self.dtype)
        return numbers.div_(self.unit) if self.unit > 1 else numbers


def compact(t: Tensor) -> Tensor | Bits | Whole:
    """Returns the numbers of a tensor in fewer bytes if no number changes, else the tensor itself. Only −0 may become 0."""
    flat = _in_order_of_memory(t.detach())
    if flat is None or t.numel() < _SMALLEST or t.dtype == torch.uint8 or t.is_complex():
        return t
    if t.dtype == torch.bool:
        return _bits(t, flat, flat.new_zeros(()), flat.new_ones(()))
    return _by_content(t, flat) if device.on_host(t) else _by_note(t, flat)


def _by_note(t: Tensor, flat: Tensor) -> Tensor | Bits | Whole:
    """Returns what `compact` returns, by the note of the layer that made the tensor. `flat` holds the elements of `t`."""
    note = saved.known(t)
    if isinstance(note, saved.TwoValues):
        return _bits(t, flat == note.high, note.low, note.high)
    if isinstance(note, saved.Whole) and note.dtype.itemsize < t.element_size():
        return Whole(_times(t.detach(), note.unit).to(note.dtype), note.unit, t.dtype)
    return t


def _by_content(t: Tensor, flat: Tensor) -> Tensor | Bits | Whole:
    """Returns what `compact` returns, by a look at all elements. `flat` holds the elements of `t`."""
    head = flat[:_HEAD]
    if _two_valued(head, *head.aminmax()) and _two_valued(flat, *(ends := flat.aminmax())):
        return _bits(t, flat == ends[1], *ends)
    if t.element_size() > 2:
        for unit in (1, 4) if t.is_floating_point() else (1,):
            if _whole(head, unit) and _whole(flat, unit):
                return Whole(_times(t.detach(), unit).to(torch.int16), unit, t.dtype)
    return t


def restored(kept: Tensor | Bits | Whole) -> Tensor:
    """Returns the tensor that `compact` has turned into `kept`."""
    return kept if isinstance(kept, Tensor) else kept.restored()


def _in_order_of_memory(t: Tensor) -> Tensor | None:
    """Returns the elements of `t` as a vector in the order of memory; None if they have gaps or overlaps in memory."""
    places = sorted(range(t.dim()), key=t.stride, reverse=True)
    ordered = t.permute(places)
    return ordered.view(-1) if ordered.is_contiguous() else None


def _two_valued(x: Tensor, low: Tensor, high: Tensor) -> bool:
    return bool(((x == low) | (x == high)).all())


def _whole(x: Tensor, unit: int) -> bool:
    x = _times(x, unit)
    low, high = x.aminmax()
    return bool((low >= _INT16.min) & (high <= _INT16.max)) and bool((x == x.to(torch.int16)).all())


def _times(x: Tensor, unit: int) -> Tensor:
    return x if unit == 1 else x * unit


def _bits(t: Tensor, ones: Tensor, low: Tensor | float, high: Tensor | float) -> Bits:
    if device.on_host(t):
        data = torch.from_numpy(np.packbits(ones.numpy(), bitorder="little"))
    else:
        data = reference.packed(nn.functional.pad(ones, (0, -len(ones) % 8))[None])[0]
    return Bits(data, low, high, torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"))
