"""torch's optimizers without the wrappers that keep torch.compile out of them.

Nothing here is ever compiled but a network, and the first call of such a wrapper imports torch._dynamo and sympy: two of the
four seconds from the command to the first step.
"""

import inspect

import torch
from torch.optim import Optimizer


class Eager:
    """The first base of an optimizer, before torch's own."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


def eager(kind: type[Optimizer]) -> type[Optimizer]:
    """A class that does what the class `kind` of torch.optim does."""
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (Eager, kind), {"step": step, "__module__": __name__, "__doc__": kind.__doc__})


SGD = eager(torch.optim.SGD)
Adam = eager(torch.optim.Adam)
