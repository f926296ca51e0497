"""The optimizer of the real parameters (BatchNorm's, for instance) with its schedule."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnn_exp.nn import device, real_parameters
from bnn_exp.optim import eager
from bnn_exp.optim.announcement import constants_of, floats, from_floats
from bnn_exp.optim.schedules import factor

KINDS = {"sgd": eager.SGD, "adam": eager.Adam}


class Scheduled:
    """An optimizer of torch and its schedule of the learning rate.

    On a GPU the optimizer reads its learning rate from an announcement, so each replay of a recorded step has its own rate.

    Args:
        settings: a choice of the group `real_optimizer`.
        parameters: the tensors to train, on one device.
    """

    def __init__(self, settings: Any, parameters: list[nn.Parameter], total_steps: int):
        kind: Any = KINDS[settings.name]
        values = {"lr": settings.lr}
        if settings.name == "sgd":
            values["momentum"] = settings.momentum
        self.optimizer = kind(parameters, **values, **eager.options_for(kind, parameters))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: factor(settings.schedule, step, total_steps)
        )
        self.on_gpu = not device.on_host(parameters[0])
        self.announced: Tensor | None = None

    def numbers(self) -> np.ndarray | None:
        """Returns the learning rate of each group for the coming step, as `from_floats` gives it; None on a CPU."""
        return from_floats(group["lr"] for group in self.optimizer.param_groups) if self.on_gpu else None

    def constants(self) -> tuple:
        """Returns the hyperparameters that `apply` reads from Python, all but the learning rate."""
        return constants_of(self.optimizer.param_groups, {"lr", "initial_lr"})

    def apply(self) -> None:
        """Trains the parameters by their gradients. A CUDA graph can record this call on a GPU."""
        if self.announced is None:
            self.optimizer.step()
            return
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, floats(self.announced).unbind(), strict=True):
            group["lr"] = rate
        try:
            self.optimizer.step()
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def count(self) -> None:
        """Sets the learning rate of the next step."""
        self.schedule.step()

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the states of the optimizer and of the schedule."""
        return self.optimizer.state_dict(), self.schedule.state_dict()

    def load(self, saved: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Restores a result of the method `state`. It may come from another device.

        Raises:
            ValueError, KeyError: `saved` is the state of another kind of optimizer.
        """
        self.optimizer.load_state_dict(eager.own_options(self.optimizer, saved[0]))
        self.schedule.load_state_dict(saved[1])


def build_real(settings, network: nn.Module, total_steps: int) -> list[Scheduled]:
    """Returns a list of one optimizer, for all parameters that are not binary. Without such parameters the list is empty."""
    parameters = [parameter for _, parameter in real_parameters(network)]
    return [Scheduled(settings, parameters, total_steps)] if parameters else []
