"""Tries the user's own rules, networks and losses on a small example, before a run writes a file.

Imports torch only if the user has a rule, a network or a loss.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bnn_exp.config.losses import LOSSES
from bnn_exp.config.models import MODELS
from bnn_exp.config.registry import home, is_ours
from bnn_exp.config.rules import RULES
from bnn_exp.config.settings import Settings
from bnn_exp.data.sources import Arrays
from bnn_exp.errors import UserError, place, reason


def check(settings: Settings, arrays: Arrays) -> None:
    """Builds the network of the settings, computes the loss, and takes two steps of the rule on a small network.

    A network, a loss or a rule of this package itself is not tried.

    Raises:
        UserError: the network, the loss or the rule fails, or returns something that a training cannot use.
    """
    if not MODELS[settings.model.name].ours:
        _check_network(settings, arrays)
    if not is_ours(home(LOSSES[settings.trainer.loss])):
        _check_loss(settings.trainer.loss, len(arrays.classes))
    if not is_ours(home(RULES[settings.optimizer.name].home)):
        _check_rule(settings)


def _check_network(settings: Settings, arrays: Arrays) -> None:
    import torch

    from bnn_exp import models
    from bnn_exp.nn import binary_layers

    key, images = f"model={settings.model.name}", arrays.train_images[:2].repeat(2, 0)[:2]
    shape, classes = images.shape[1:], len(arrays.classes)
    sizes = f"uint8 [rows, {', '.join(map(str, shape))}] → logits [rows, {classes}]"
    with _own_code(f"{key}: {home(models.kind(settings.model))}", f"a network {sizes}"):
        torch.manual_seed(settings.seed)
        network = models.build(settings.model, shape, classes, arrays.mean, arrays.std)
        if not any(True for _ in binary_layers(network)):
            raise UserError(f"{key}: the network has no binary weights\nallowed: a network with layers of bnn_exp.nn")
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(images))
    got = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
    if got != f"torch.float32 [2, {classes}]":
        raise UserError(f"{key}: the network returns {got} for two images\nallowed: a network {sizes}, float32")


def _check_loss(name: str, classes: int) -> None:
    import torch

    from bnn_exp.config.losses import loss_named

    logits = torch.linspace(-1, 1, 2 * classes).reshape(2, classes).requires_grad_()
    with _own_code(f"trainer.loss={name}: {home(LOSSES[name])}", "a function of logits [batch, classes] and labels [batch]"):
        value = loss_named(name)(logits, torch.tensor([0, classes - 1]))
    scalar = isinstance(value, torch.Tensor) and value.dim() == 0 and value.is_floating_point() and value.requires_grad
    if not scalar:
        got = f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        got += " without a gradient" if isinstance(value, torch.Tensor) and not value.requires_grad else ""
        raise UserError(f"trainer.loss={name}: it returns {got}\nallowed: the mean over the batch, a scalar with a gradient")


def _check_rule(settings: Settings) -> None:
    import torch
    from torch import nn

    from bnn_exp.nn import BinaryLinear

    rule = RULES[settings.optimizer.name]
    allowed = "__init__(self, params, SETTING=…, **training) and update(g, w, h, state, draw), as in docs/add_a_rule.md"
    torch.manual_seed(settings.seed)
    weights = getattr(settings.model, "weights", rule.trains[0])
    network = nn.Sequential(*(BinaryLinear(*sizes, weights=weights) for sizes in ((5, 4), (4, 3))))
    with _own_code(f"optimizer={settings.optimizer.name}: {home(rule.home)}", allowed):
        kind: Any = rule.load()
        optimizer = kind.of(settings.optimizer, network, 2, 2, settings.seed)
        if hasattr(optimizer, "update"):
            optimizer.update = _watched(optimizer.update)
        for _ in range(2):
            for p in network.parameters():
                p.grad = torch.randn(p.shape)
            optimizer.step()


def _watched(update: Callable) -> Callable:
    """Returns a rule's `update` with a check of its result: each flat position of a weight must exist and occur only once."""
    import torch

    def watched(g: Any, w: torch.Tensor, *others: Any) -> Any:
        which = update(g, w, *others)
        if isinstance(which, torch.Tensor) and which.dtype == torch.int64 and which.dim() == 1:
            if len(which.unique()) != len(which):
                raise ValueError("update returned a position twice: each must occur once")
            if len(which) and not 0 <= (first := int(which.min())) <= (last := int(which.max())) < w.numel():
                raise ValueError(f"update returned positions from {first} to {last}: must be from 0 to {w.numel() - 1}")
        return which

    return watched


@contextmanager
def _own_code(what: str, allowed: str) -> Iterator[None]:
    """Context manager: turns an exception of the user's own code into a UserError about `what`, which names the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {reason(error)} ({place(error)})\nallowed: {allowed}") from error
