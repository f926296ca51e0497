"""The registry of the losses that `trainer.loss` can name. `register_loss` adds your own loss (docs/add_a_model.md).

Imports no torch.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from bnn_exp.config import plugins
from bnn_exp.config.registry import Registry, found

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: Registry["str | Loss"] = Registry("trainer.loss")  # each entry: a function, or its name as "module:function"


def register_loss(name: str, home: "str | Loss") -> None:
    """Registers a loss, which `trainer.loss=NAME` then chooses.

    Args:
        home: the function (or a module of `torch.nn`), or its name as "module:function". The function takes logits
            [batch, classes] and labels int64 [batch]. It returns the mean over the batch, a scalar with a gradient.

    Raises:
        UserError: another loss has the name.
    """
    plugins.note(sys._getframe(1))
    LOSSES.add(name, home, home)


def loss_named(name: str) -> "Loss":
    """Returns the loss function that `trainer.loss=NAME` chooses."""
    return found(LOSSES[name])


register_loss("cross_entropy", "bnn_exp.training.losses:cross_entropy")
register_loss("squared_hinge", "bnn_exp.training.losses:squared_hinge")
