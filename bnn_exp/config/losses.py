"""The losses that `trainer.loss` can name. Imports no torch.

A loss of your own joins by `register_loss` (docs/add_a_model.md).
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from bnn_exp.config import plugins
from bnn_exp.config.registry import Registry, found

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: Registry["str | Loss"] = Registry("trainer.loss")  # functions, themselves or as "module:function"


def register_loss(name: str, home: "str | Loss") -> None:
    """Make a loss known as `trainer.loss=NAME`.

    Args:
        home: the function (or a module of `torch.nn`), or "module:function". It takes logits [batch, classes] and labels int64
            [batch], and returns the mean over the batch, a scalar with a gradient.

    Raises:
        UserError: the name is taken.
    """
    plugins.note(sys._getframe(1))
    LOSSES.add(name, home, home)


def loss_named(name: str) -> "Loss":
    """The function that `trainer.loss=NAME` names."""
    return found(LOSSES[name])


register_loss("cross_entropy", "bnn_exp.training.losses:cross_entropy")
register_loss("squared_hinge", "bnn_exp.training.losses:squared_hinge")
