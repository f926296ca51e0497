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


class SGD(Eager, torch.optim.SGD):
    """torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(Eager, torch.optim.Adam):
    """torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
