"""The optimizer of the real parameters (BatchNorm's, for instance) with its schedule."""

from typing import Any

import torch
from torch import nn

from bnn_exp.nn import device, real_parameters
from bnn_exp.optim import eager
from bnn_exp.optim.schedules import factor

KINDS = {"sgd": eager.SGD, "adam": eager.Adam}


class Scheduled:
    """An optimizer of torch and its schedule of the learning rate.

    On a GPU the learning rate is a scalar tensor that the schedule fills, so a recorded step reads the rate of each replay.

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
        if not device.on_host(parameters[0]):
            for group in self.optimizer.param_groups:
                group["lr"] = torch.full((), group["lr"], device=parameters[0].device)

    def apply(self) -> None:
        """Trains the parameters by their gradients. A CUDA graph can record this call."""
        self.optimizer.step()

    def count(self) -> None:
        """Sets the learning rate of the next step."""
        self.schedule.step()

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the states of the optimizer and of the schedule, with learning rates as numbers."""
        state = self.optimizer.state_dict()
        groups = [group | {"lr": float(group["lr"])} for group in state["param_groups"]]
        rates = self.schedule.state_dict()
        return state | {"param_groups": groups}, rates | {"_last_lr": [float(rate) for rate in rates["_last_lr"]]}

    def load(self, saved: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Restores a result of the method `state`. It may come from another device.

        Raises:
            ValueError, KeyError: `saved` is the state of another kind of optimizer.
        """
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(eager.own_options(self.optimizer, saved[0]))
        self.schedule.load_state_dict(saved[1])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(rate, torch.Tensor):
                group["lr"] = rate.fill_(float(group["lr"]))


def build_real(settings, network: nn.Module, total_steps: int) -> list[Scheduled]:
    """Returns a list of one optimizer, for all parameters that are not binary. Without such parameters the list is empty."""
    parameters = [parameter for _, parameter in real_parameters(network)]
    return [Scheduled(settings, parameters, total_steps)] if parameters else []
