"""Tries networks and losses of one's own on two rows, before anything is written. Imports torch only where there are such."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bnn_exp.data.sources import Arrays
from bnn_exp.errors import UserError
from bnn_exp.loss_registry import LOSSES
from bnn_exp.networks import MODELS
from bnn_exp.registry import home, is_ours


def check(settings: Any, arrays: Arrays) -> None:
    """Builds the network of the settings and computes its loss, where one of both is not part of this package.

    Raises:
        UserError: it fails, or it does not give what a training needs.
    """
    if not MODELS[settings.model.name].ours:
        _check_network(settings, arrays)
    if not is_ours(home(LOSSES[settings.trainer.loss])):
        _check_loss(settings.trainer.loss, len(arrays.classes))


def _check_network(settings: Any, arrays: Arrays) -> None:
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
            raise UserError(f"{key}: the network has no binary weights\nallowed: one with layers of bnn_exp.nn")
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(images))
    got = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
    if got != f"torch.float32 [2, {classes}]":
        raise UserError(f"{key}: the network gives {got} for two rows\nallowed: a network {sizes}, float32")


def _check_loss(name: str, classes: int) -> None:
    import torch

    from bnn_exp.loss_registry import loss_named

    logits = torch.linspace(-1, 1, 2 * classes).reshape(2, classes).requires_grad_()
    with _own_code(f"trainer.loss={name}: {home(LOSSES[name])}", "a function of logits [batch, classes] and labels [batch]"):
        value = loss_named(name)(logits, torch.tensor([0, classes - 1]))
    scalar = isinstance(value, torch.Tensor) and value.dim() == 0 and value.is_floating_point() and value.requires_grad
    if not scalar:
        got = f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        got += " without a gradient" if isinstance(value, torch.Tensor) and not value.requires_grad else ""
        raise UserError(f"trainer.loss={name}: it gives {got}\nallowed: the mean over the batch, a scalar with a gradient")


@contextmanager
def _own_code(what: str, allowed: str) -> Iterator[None]:
    """Within the block an error is one of somebody's own code. It becomes a UserError that names the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{what}: {reason} ({frame.filename}, line {frame.lineno})\nallowed: {allowed}") from error
