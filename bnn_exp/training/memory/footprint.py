"""Counts the bytes of a training step, and the bytes that a step of Adam on latent weights would take."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer

from bnn_exp.nn import binary_layers, named_bits


@dataclass(frozen=True)
class Bytes:
    """The bytes in memory at the end of a forward pass, and the greatest bytes of gradients at once in a step."""

    weights: int  # all parameters, in the form in which they are stored
    state: int  # the optimizers' states, kept from step to step
    gradients: int  # gradients of parameters, the greatest sum at one moment
    saved: int  # tensors saved for the backward pass; shared memory counts once
    buffers: int  # the buffers of the network

    @property
    def together(self) -> int:
        return sum(asdict(self).values())


class Footprint:
    """A counter of the bytes of a network's largest step so far.

    Args:
        hooks: the hooks with which the forward pass saves tensors; None if torch saves them as they are.
    """

    def __init__(self, network: nn.Module, hooks: saved_tensors_hooks | None = None):
        self.network, self.hooks, self.parameters = network, hooks, list(network.parameters())
        self.rows = self.gradients = 0
        self.counted: _Counting | None = None

    def saving(self, rows: int) -> AbstractContextManager:
        """Returns the context manager for a forward pass on `rows` samples. It counts if no earlier pass had as many."""
        if rows <= self.rows:
            return self.hooks or nullcontext()
        self.rows, self.counted = rows, _Counting(self.network, self.hooks)
        return self.counted

    def note_gradients(self) -> None:
        """Adds up the bytes of the gradients that exist now, and keeps the sum if no earlier sum was greater."""
        there = sum(p.grad.nbytes for p in self.parameters if p.grad is not None)
        self.gradients = max(self.gradients, there)

    def bytes(self, *optimizers: Any) -> Bytes:
        """Returns the bytes of the largest step so far, with the present states of the optimizers."""
        weights, buffers = (sum(t.nbytes for t in ts) for ts in (self.network.parameters(), self.network.buffers()))
        state = sum(t.nbytes for optimizer in optimizers for t in _state(optimizer))
        return Bytes(weights, state, self.gradients, sum(self.counted.kept.values()) if self.counted else 0, buffers)

    def under_adam(self, dense: bool) -> Bytes:
        """Returns the bytes of the same step in fp32 with latent weights, if Adam trained all parameters.

        The network with latent weights is not built. A `dense` forward pass saves the same tensors for latent weights, whose
        values are separate tensors. For a pass by other kernels, `saved_by_mlp` gives the number.

        Args:
            dense: True if the engine is `dense`.
        """
        bits = {name: len(b.flatten()) for name, b in named_bits(self.network)}
        weights = 4 * (sum(bits.values()) + sum(p.numel() for n, p in self.network.named_parameters() if n not in bits))
        if self.counted is None:
            saved = 0
        else:
            saved = sum(self.counted.plain.values()) if dense else saved_by_mlp(self.network, self.rows)
        return Bytes(weights, 2 * weights, weights, saved, sum(b.nbytes for b in self.network.buffers()))


def saved_by_mlp(network: nn.Module, rows: int) -> int:
    """Returns the bytes that dense torch saves for the backward pass of `bnn_exp.models.mlp.MLP` in fp32.

    For `rows` samples and a layer of i inputs and o outputs, torch saves:

    - the inputs of the layer, 4·rows·i (pixels: rows·i);
    - the values of its weights, 4·i·o, if its inputs have a gradient;
    - the inputs of its BatchNorm, 4·rows·o, and the mean and deviation that BatchNorm uses, 8·o;
    - for an activation with a window, which numbers are inside the window: rows·o;
    - for cross-entropy, the log-probabilities, 4·rows·o, the labels, 8·rows, and a float.
    """
    saved, sizes = 0, [layer.in_features for layer in network.layers] + [network.layers[-1].out_features]
    for i, o in pairwise(sizes):
        saved += rows * i + 4 * rows * o + 8 * o if not saved else 4 * rows * i + 4 * i * o + 4 * rows * o + 8 * o
    activations = [*sizes[1:-1], *sizes[-1:] * network.binarize_logits]
    return saved + rows * sum(activations) * (network.window is not None) + 4 * rows * sizes[-1] + 8 * rows + 4


class _Counting(saved_tensors_hooks):
    """Context manager: counts the memory of the tensors that autograd saves, before (`plain`) and after (`kept`) the hooks."""

    def __init__(self, network: nn.Module, hooks: saved_tensors_hooks | None):
        # The bytes of each storage. The reference keeps the storage's address from being used again.
        self.kept: dict[StorageWeakRef, int] = {}
        self.plain: dict[StorageWeakRef, int] = {}
        self.pack = hooks.pack_hook if hooks else lambda t: t
        binary = {id(p) for _, layer in binary_layers(network) for p in layer.parameters(recurse=False)}
        held = [*network.parameters(), *network.buffers()]
        self.held = {StorageWeakRef(t.untyped_storage()) for t in held}
        self.real = {StorageWeakRef(t.untyped_storage()) for t in held if id(t) not in binary}
        super().__init__(self._count, hooks.unpack_hook if hooks else lambda t: t)

    def _count(self, t: Tensor) -> Any:
        kept = self.pack(t)
        parts = [kept] if isinstance(kept, Tensor) else [part for part in vars(kept).values() if isinstance(part, Tensor)]
        _note(self.plain, [t], self.real)
        _note(self.kept, parts, self.held)
        return kept


def _note(found: dict[StorageWeakRef, int], tensors: list[Tensor], but: set[StorageWeakRef]) -> None:
    for storage in (t.untyped_storage() for t in tensors if not t.is_meta):
        if (reference := StorageWeakRef(storage)) not in but:
            found[reference] = storage.nbytes()


def _state(optimizer: Optimizer) -> Iterator[Tensor]:
    return (t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
