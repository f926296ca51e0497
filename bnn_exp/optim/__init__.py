"""The rules that train binary weights, and who trains what."""

from collections.abc import Iterable

import torch
from torch import nn

from bnn_exp.nn import real_parameters
from bnn_exp.optim import eager
from bnn_exp.optim.bold import Bold
from bnn_exp.optim.bop import Bop, Bop2
from bnn_exp.optim.cema import CEMA
from bnn_exp.optim.counter import Counter
from bnn_exp.optim.hypermask import HyperMask
from bnn_exp.optim.latent import LatentAdam, LatentSGD
from bnn_exp.optim.rule import Rule
from bnn_exp.optim.schedules import factor
from bnn_exp.rules import RULES

__all__ = [
    "CEMA",
    "Bold",
    "Bop",
    "Bop2",
    "Counter",
    "HyperMask",
    "LatentAdam",
    "LatentSGD",
    "Rule",
    "build_binary",
    "build_real",
    "check_ownership",
]


def build_binary(settings, network: nn.Module, batch_size: int, total_steps: int, seed: int) -> torch.optim.Optimizer:
    """The optimizer of the binary weights that `settings` (a choice of the group `optimizer`) describes."""
    return RULES[settings.name].load().of(settings, network, batch_size, total_steps, seed)


def build_real(settings, network: nn.Module, total_steps: int) -> list[tuple[torch.optim.Optimizer, object]]:
    """The optimizer of all other parameters with its schedule; none for a network that has no such parameters."""
    parameters = [parameter for _, parameter in real_parameters(network)]
    if not parameters:
        return []
    if settings.name == "sgd":
        optimizer = eager.SGD(parameters, settings.lr, momentum=settings.momentum)
    else:
        optimizer = eager.Adam(parameters, settings.lr)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(settings.schedule, step, total_steps))
    return [(optimizer, falling)]


def check_ownership(network: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Every parameter that wants a gradient must be trained by exactly one of the optimizers.

    Raises:
        ValueError: naming the first parameter that is in none, or in several.
    """
    owners: dict[int, list[str]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                owners.setdefault(id(parameter), []).append(type(optimizer).__name__)
    for name, parameter in network.named_parameters():
        names = owners.get(id(parameter), [])
        if parameter.requires_grad and len(names) != 1:
            raise ValueError(f"{name} is trained by {' and '.join(names) or 'no optimizer'}: it must be exactly one")
