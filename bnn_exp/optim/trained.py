"""The interface of all optimizers of binary weights: rules for bits, and torch's optimizers for latent weights."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bnn_exp.optim.announcement import Announcement
from bnn_exp.optim.eager import Eager
from bnn_exp.optim.group import Group, Grouped


class Trained(Grouped, Eager):
    """An optimizer of binary weights. Beside `step` it offers its tensors, their flips and the bytes of its state.

    `step` calls `announce`, `apply` and `count` in turn, see `Rule`. The training loop calls these three itself.
    """

    state: dict[Tensor, dict[str, Any]]  # as in torch's optimizers: what each tensor keeps from step to step, by name
    flips: list[Tensor]  # for each tensor an int64 scalar on its device: the flips since a reader has set it to 0
    own: ClassVar[tuple[str, ...]] = ("flips",)  # attributes that a copy of the optimizer needs besides those of torch
    announced: Tensor | None = None  # the numbers of the coming step on a GPU, see bnn_exp.optim.announcement
    _alone: Announcement | None = None  # sends the numbers of an optimizer that is used without a training

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return state | {name: getattr(self, name) for name in self.own}

    def announce(self) -> None:
        """Prepares the coming step: calls `numbers`, and copies them to the GPU.

        A training does not call this method. A training sends the numbers of all its parts by one `Announcement`.
        """
        if tensors := self.tensors():
            self._alone = self._alone or Announcement(tensors[0].device, self)
            self._alone.send()

    def numbers(self) -> np.ndarray | None:
        """Does the part of the coming step that a CUDA graph cannot record.

        Returns the numbers that the step reads on a GPU, int64; None on a CPU.
        """
        raise NotImplementedError

    def constants(self) -> tuple:
        """Returns the hyperparameters that `apply` reads from Python. A CUDA graph holds their values of the recording."""
        raise NotImplementedError

    def apply(self) -> Any:
        """Trains every tensor that has a gradient."""
        raise NotImplementedError

    def count(self) -> None:
        """Adds 1 to the count of steps of each group."""
        raise NotImplementedError

    @property
    def strengths(self) -> dict[str, float | None]:
        """The strengths that the last step used, by name. A strength that the optimizer does not have is None."""
        raise NotImplementedError

    @property
    def recordable(self) -> bool:
        """True if a CUDA graph can record `apply`."""
        return True

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that the optimizer trains, in the order of the list `flips`."""
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
        """The size in bytes of the state that the optimizer keeps from step to step. The bits themselves do not count."""
        kept = (v for state in self.state.values() for v in state.values() if isinstance(v, Tensor))
        return sum(v.numel() * v.element_size() for v in kept)
