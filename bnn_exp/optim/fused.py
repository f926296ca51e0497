"""A rule's step on one tensor as one torch operator: few kernels on a GPU, one compiled pass on a CPU."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bnn_exp.bits.factors import Factors
from bnn_exp.bits.packing import PackedBits
from bnn_exp.bits.philox import Philox
from bnn_exp.bits.scalar_rules import STEPS
from bnn_exp.nn import device
from bnn_exp.nn.operators import operator
from bnn_exp.optim.in_place import flip_bits, keep_addresses

SCHEMA = (
    "(Tensor g, Tensor(a!) w, int columns, Tensor(b!)[] state, Tensor strength, Scalar[] constants, Tensor step, int key, "
    "Tensor(c!) flips) -> ()"
)
_ON_GPU, _ON_CPU = (f"bnn_exp.bits.{where}.rules:STEPS" for where in ("cuda", "cpu"))
MOST = 2**27  # kernels take fewer elements: they number bits by int32, and a packed element holds eight bits
First = Callable[[Callable[[], Tensor], SimpleNamespace], dict[str, Tensor]]


def zeros(*names: str) -> First:
    """Returns a function that makes a state: under each of the names a tensor of zeros, one for each bit."""

    def first(bits: Callable[[], Tensor], h: SimpleNamespace) -> dict[str, Tensor]:
        like = bits()
        return {name: torch.zeros_like(like, dtype=torch.float32) for name in names}

    return first


@dataclass(frozen=True)
class Fused:
    """Kernels that do what `update` of a rule does. The class attribute `kernels` of the rule lists them.

    The operator `torch.ops.bnn_exp.NAME` takes the gradient g, float32 or (on a CPU) bfloat16 [neurons, inputs]; the bits w,
    float32 of the same shape or packed; the number of columns; the tensors of the state; the strength, a scalar tensor; the
    constants; the step and the key of the random numbers; and the number of flips, to which the operator adds. The definition
    of the operator is `update`, which therefore must not read `self`.

    Args:
        name: the name of the operator, and of its `Step` in `bnn_exp.bits.scalar_rules`, which numba and Triton compile.
        launches: the number of kernels that the step launches on a GPU.
        strength: the hyperparameter that follows the schedule.
        constants: other hyperparameters that the kernels read.
        only: values of further hyperparameters; the kernels do the step of a rule with these values alone.
        state: the names of the tensors of the state.
        first: returns the state before the first step. Its arguments are a function that returns the bits in new memory, uint8
            [neurons, inputs], and the hyperparameters.
    """

    name: str
    launches: int
    strength: str
    constants: tuple[str, ...] = ()
    only: dict[str, Any] = field(default_factory=dict)
    state: tuple[str, ...] = ()
    first: First = field(default_factory=zeros)

    @property
    def takes_blocks(self) -> bool:
        """True if a CPU's kernels also take a gradient in blocks. The mask `top` would compute each block four times."""
        return STEPS[self.name].rule != "top"

    def define(self, update: Callable[..., Tensor]) -> None:
        """Makes the operator, with the method `update` of the rule's class as its definition."""

        def definition(g, w, columns, state, strength, constants, step, key, flips):
            numbers = dict(zip(self.constants, constants, strict=True))
            h = SimpleNamespace(**{self.strength: strength}, **numbers, **self.only)
            bits = PackedBits(w, columns) if w.dtype == torch.uint8 else None
            kept = dict(zip(self.state, state, strict=False))
            before = dict(kept)
            which = update(None, g.float(), bits.unpack() if bits else w, h, kept, Philox(key, step))
            keep_addresses(kept, before)
            flips += bits.flip(which) if bits else flip_bits(w, which)

        definition.__name__ = self.name
        gpu, cpu = (f"{steps}.{self.name}" for steps in (_ON_GPU, _ON_CPU))
        operator(SCHEMA, gpu, self.launches, cpu=cpu, numbers=lambda g, *_: g.numel())(definition)

    def step(
        self,
        w: Tensor,
        g: Tensor | Factors,
        h: SimpleNamespace,
        state: dict[str, Tensor],
        step: Tensor,
        key: int,
        flips: Tensor,
    ) -> bool:
        """Does the step of bits w by the gradient g, and adds the number of flips to `flips`.

        Args:
            g: the gradient; for packed bits on a CPU also Factors, whose blocks are computed where they are needed.
            step, key: determine the random numbers, see `Philox`.

        Returns:
            False if the kernels cannot read these tensors. Then nothing has changed, except that `state` may exist.
        """
        packed, computed = w.dtype == torch.uint8, isinstance(g, Tensor)
        columns = g.shape[1] if computed else g.inputs
        if computed and not _readable(g, w):
            return False
        if self.state and not state:
            state.update(self.first(lambda: PackedBits(w, columns).unpack(torch.uint8) if packed else w.byte(), h))
        kept = [state[name] for name in self.state if name in state]
        if not all(t.is_contiguous() and t.dtype in (torch.float32, torch.uint8) for t in kept):
            return False
        if packed and not device.on_host(w) and not _whole_bytes(g, kept):
            return False
        constants, strength = [getattr(h, name) for name in self.constants], getattr(h, self.strength)
        if not isinstance(strength, Tensor):
            strength = torch.tensor(strength, dtype=torch.float32)
        do = getattr(torch.ops.bnn_exp if computed else pkgutil.resolve_name(_ON_CPU), self.name)
        do(g, w, columns, kept, strength, constants, step, key, flips)
        return True


def _readable(g: Tensor, w: Tensor) -> bool:
    """Returns True if kernels can read a gradient and bits of these dtypes and sizes."""
    real = g.dtype == torch.float32 or (g.dtype == torch.bfloat16 and device.on_host(g))
    return real and w.dtype in (torch.float32, torch.uint8) and g.stride(1) == 1 and w.is_contiguous() and w.numel() < MOST


def _whole_bytes(g: Tensor, state: list[Tensor]) -> bool:
    """Returns True unless counters that share a byte belong to two rows of packed bits."""
    return g.shape[1] % 8 == 0 or not any(t.dim() and t.numel() < g.numel() for t in state)


def kernels_of(kind: type, h: SimpleNamespace) -> Fused | None:
    """Returns the kernels that do the step of a rule with the hyperparameters `h`, or None.

    A class with an `update` of its own has none of the kernels that it inherits.
    """
    owner = next(base for base in kind.__mro__ if "update" in vars(base))
    found = (each for each in vars(owner).get("kernels", ()) if all(getattr(h, n) == v for n, v in each.only.items()))
    return next(found, None)
