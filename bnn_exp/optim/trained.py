"""The interface of all optimizers of binary weights: rules for bits, and torch's optimizers for latent weights."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from bnn_exp.optim.eager import Eager
from bnn_exp.optim.group import Group, Grouped


class Trained(Grouped, Eager):
    """An optimizer of binary weights: it offers its tensors, their flips and its bytes, beside `step`.

    `step` is `announce`, `apply` and `count` in turn, see `Rule`; a training step calls the three itself.
    """

    state: dict[Tensor, dict[str, Any]]  # as in torch's optimizers: what each tensor keeps from step to step, by name
    flips: list[Tensor]  # for each tensor an int64 scalar on its device: the flips since a reader has set it to 0
    own: ClassVar[tuple[str, ...]] = ("flips",)  # attributes that a copy of the optimizer needs besides those of torch

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return state | {name: getattr(self, name) for name in self.own}

    def announce(self) -> None:
        """Prepares the coming step in Python."""
        raise NotImplementedError

    def apply(self) -> Any:
        """Trains every tensor that has a gradient."""
        raise NotImplementedError

    def count(self) -> None:
        """Counts the step that was done."""
        raise NotImplementedError

    @property
    def strengths(self) -> dict[str, float | None]:
        """The strengths that the last step used: `delta` and `lr`, None where there is none."""
        raise NotImplementedError

    @property
    def recordable(self) -> bool:
        """True if a CUDA graph can record `apply`."""
        return True

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that the optimizer trains, in the order of `flips`."""
        return [p for group in self.param_groups for p in group["params"]]

    def name(self, i: int) -> str:
        """Returns the name of tensor i for messages: the name that the optimizer was given, else its number."""
        names = [name for group in self.param_groups for name in group.get("param_names", [])]
        return names[i] if names else f"tensor {i}"

    def check_group(self, group: Group) -> None:
        super().check_group(group)
        self.flips += [torch.zeros((), dtype=torch.int64, device=p.device) for p in group["params"]]

    @property
    def state_bytes(self) -> int:
        """The bytes of the state that is kept from step to step, without the bits themselves."""
        kept = (v for state in self.state.values() for v in state.values() if isinstance(v, Tensor))
        return sum(v.numel() * v.element_size() for v in kept)
