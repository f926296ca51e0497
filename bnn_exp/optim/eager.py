"""torch's optimizers without the wrappers that keep torch.compile out of them, and their options on a GPU.

The first call of such a wrapper imports torch._dynamo and sympy, which takes two of the four seconds from the command to the
first step. This package compiles networks, but never optimizers, so it does not need the wrappers.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnn_exp.nn import device


class Eager:
    """The first base class of an optimizer: replaces methods of torch's class by the functions inside their wrappers."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    _warned_capturable_if_run_uncaptured = True  # hides a warning: some steps run outside a CUDA graph on purpose


def eager(kind: type[Optimizer]) -> type[Optimizer]:
    """Returns a copy of the class `kind` of torch.optim, whose methods have no wrappers against torch.compile."""
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (Eager, kind), {"step": step, "__module__": __name__, "__doc__": kind.__doc__})


SGD = eager(torch.optim.SGD)
Adam = eager(torch.optim.Adam)


# Options of torch's optimizers: a step on a GPU is then few kernels and reads nothing from Python.
ON_GPU = ("fused", "capturable")


def options_for(kind: type, parameters: Sequence[Tensor]) -> dict[str, bool]:
    """Returns the options in `ON_GPU` that the optimizer class `kind` knows, all True. On a CPU: no options."""
    if not parameters or device.on_host(parameters[0]):
        return {}
    known = {name for base in kind.__mro__[:-1] for name in inspect.signature(base.__init__).parameters}
    fused = issubclass(kind, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW)
    return {name: True for name in ON_GPU if name in known and (fused or name != "fused")}


def own_options(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Returns a saved state with the options `ON_GPU` of `optimizer`, because the state may come from another device."""
    groups = []
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False):
        groups.append(saved | {name: own[name] for name in ON_GPU if name in own})
    return state | {"param_groups": groups}
