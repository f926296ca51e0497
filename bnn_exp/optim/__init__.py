"""Optimizers: rules that train bits, optimizers of latent weights, optimizers of real parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bnn_exp.config.rules import RULES
from bnn_exp.nn import binary_parameters
from bnn_exp.optim.bold import Bold
from bnn_exp.optim.bop import Bop, Bop2
from bnn_exp.optim.cema import CEMA
from bnn_exp.optim.counter import Counter
from bnn_exp.optim.hypermask import HyperMask
from bnn_exp.optim.latent import LatentAdam, LatentSGD, latent_optimizer
from bnn_exp.optim.real import Scheduled, build_real
from bnn_exp.optim.rule import Rule
from bnn_exp.optim.trained import Trained

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
    "Scheduled",
    "build_binary",
    "build_real",
    "check_ownership",
    "latent_optimizer",
]


def build_binary(settings: Any, network: nn.Module, batch_size: int, total_steps: int, seed: int) -> Trained:
    """Returns the optimizer of a network's binary weights that `settings`, a choice of the group `optimizer`, describes."""
    kind: Any = RULES[settings.name].load()
    return kind.of(settings, network, batch_size, total_steps, seed)


def check_ownership(network: nn.Module, optimizers: Iterable[Any]) -> None:
    """Checks that exactly one of the optimizers trains each parameter that needs a gradient, and that a rule trains bits.

    Raises:
        ValueError: no optimizer or several train a parameter, or an optimizer of torch trains bits. The message names the
            first such parameter.
    """
    owners: dict[int, list[torch.optim.Optimizer]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                owners.setdefault(id(parameter), []).append(optimizer)
    bits = {id(parameter) for _, parameter in binary_parameters(network)}
    for name, parameter in network.named_parameters():
        found = owners.get(id(parameter), [])
        names = " and ".join(type(optimizer).__name__ for optimizer in found) or "no optimizer"
        if parameter.requires_grad and len(found) != 1:
            raise ValueError(f"{name} is trained by {names}: it must be exactly one")
        if parameter.requires_grad and id(parameter) in bits and type(found[0]).__module__.startswith("torch.optim"):
            raise ValueError(f"{name} holds bits and is trained by {names}: it must be a rule for bits, as HyperMask")
