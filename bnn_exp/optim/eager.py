"""torch's optimizers without the wrappers that keep torch.compile out of them, and their options on a GPU.

Only networks are ever compiled here. The first call of such a wrapper imports torch._dynamo and sympy: two of the four seconds
from the command to the first step.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnn_exp.bits import device


class Eager:
    """The first base class of an optimizer, before torch's own."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    _warned_capturable_if_run_uncaptured = True  # hides a warning: some steps run outside a CUDA graph on purpose


def eager(kind: type[Optimizer]) -> type[Optimizer]:
    """Returns a class that does what the class `kind` of torch.optim does."""
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (Eager, kind), {"step": step, "__module__": __name__, "__doc__": kind.__doc__})


SGD = eager(torch.optim.SGD)
Adam = eager(torch.optim.Adam)


# Options of torch's optimizers: a step on a GPU is then few kernels and reads nothing from Python.
ON_GPU = ("fused", "capturable")


def options_for(kind: type, parameters: Sequence[Tensor]) -> dict[str, bool]:
    """Returns those of the options `ON_GPU` that a class of optimizers has, if the parameters lie on a GPU."""
    if not parameters or device.on_host(parameters[0]):
        return {}
    known = {name for base in kind.__mro__[:-1] for name in inspect.signature(base.__init__).parameters}
    fused = issubclass(kind, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW)
    return {name: True for name in ON_GPU if name in known and (fused or name != "fused")}


def own_options(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Returns a saved state of an optimizer with this optimizer's options: the state may come from another device."""
    groups = []
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False):
        groups.append(saved | {name: own[name] for name in ON_GPU if name in own})
    return state | {"param_groups": groups}
