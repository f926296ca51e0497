"""Where the bytes of a training go: this one's, and those of the same network under Adam with latent weights."""

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
    """What lies in memory at the end of a forward pass, and of a backward pass the gradients."""

    weights: int  # all parameters, as they are kept
    state: int  # what the optimizers remember of them from step to step
    gradients: int  # of parameters, the most at once
    saved: int  # for the backward pass, each piece of memory once
    buffers: int  # of the network

    @property
    def together(self) -> int:
        return sum(asdict(self).values())


class Footprint:
    """Counts the greatest step of a network so far.

    Args:
        hooks: by which its forward pass saves tensors; None for torch's own way.
    """

    def __init__(self, network: nn.Module, hooks: saved_tensors_hooks | None = None):
        self.network, self.hooks = network, hooks
        self.rows = self.gradients = 0
        self.counted: _Counting | None = None

    def saving(self, rows: int) -> AbstractContextManager:
        """For the forward pass of a step on `rows` rows to be in: they are counted where no step had as many."""
        if rows <= self.rows:
            return self.hooks or nullcontext()
        self.rows, self.counted = rows, _Counting(self.network, self.hooks)
        return self.counted

    def note_gradients(self) -> None:
        """Count the gradients that are there now."""
        there = sum(p.grad.nbytes for p in self.network.parameters() if p.grad is not None)
        self.gradients = max(self.gradients, there)

    def bytes(self, *optimizers: Any) -> Bytes:
        """Of the steps so far and of the optimizers as they are."""
        weights, buffers = (sum(t.nbytes for t in ts) for ts in (self.network.parameters(), self.network.buffers()))
        state = sum(t.nbytes for optimizer in optimizers for t in _state(optimizer))
        return Bytes(weights, state, self.gradients, sum(self.counted.kept.values()) if self.counted else 0, buffers)

    def under_adam(self, dense: bool) -> Bytes:
        """Of the same steps of the same network in fp32 with latent weights, all of its parameters trained by Adam.

        Without such a network being made: what a `dense` forward pass saves is what it saves of latents too, whose values are
        tensors of their own; of a pass by other kernels it is `saved_by_mlp`.
        """
        bits = {name: len(b.flatten()) for name, b in named_bits(self.network)}
        weights = 4 * (sum(bits.values()) + sum(p.numel() for n, p in self.network.named_parameters() if n not in bits))
        if self.counted is None:
            saved = 0
        else:
            saved = sum(self.counted.plain.values()) if dense else saved_by_mlp(self.network, self.rows)
        return Bytes(weights, 2 * weights, weights, saved, sum(b.nbytes for b in self.network.buffers()))


def saved_by_mlp(network: nn.Module, rows: int) -> int:
    """What dense torch saves for the backward pass of a step of `bnn_exp.models.mlp.MLP` in fp32, in bytes.

    A layer of i inputs and o outputs saves its inputs, 4·rows·i (pixels: rows·i), and, where these have a gradient, the
    values of its weights, 4·i·o; its BatchNorm its inputs, 4·rows·o, and what it normalised by, 8·o; an activation with a
    window which numbers lay in it, rows·o; cross-entropy the log-probabilities, 4·rows·o, the labels, 8·rows, and a float.
    """
    saved, sizes = 0, [layer.in_features for layer in network.layers] + [network.layers[-1].out_features]
    for i, o in pairwise(sizes):
        saved += rows * i + 4 * rows * o + 8 * o if not saved else 4 * rows * i + 4 * i * o + 4 * rows * o + 8 * o
    activations = [*sizes[1:-1], *sizes[-1:] * network.binarize_logits]
    return saved + rows * sum(activations) * (network.window is not None) + 4 * rows * sizes[-1] + 8 * rows + 4


class _Counting(saved_tensors_hooks):
    """A context that counts the memory of what is saved in it: as it is `kept`, and `plain`, as it was before it was packed."""

    def __init__(self, network: nn.Module, hooks: saved_tensors_hooks | None):
        self.kept: dict[StorageWeakRef, int] = {}  # bytes; a reference keeps its address from being another's
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
