"""Builds networks from their settings. Each network has a module here."""

from collections.abc import Sequence
from dataclasses import asdict
from inspect import signature
from typing import Any

from torch import nn

from bnn_exp.config.models import MODELS

__all__ = ["build", "depth", "kind", "stages"]


def build(
    settings: Any,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Builds the network of `settings`, a choice of the group `model`, for images (channels, height, width).

    Args:
        mean, std: the statistics of the train pixels per channel, as numbers from 0 to 1. A network may standardise its input
            by them. None: 0 and 1.
    """
    values, made = asdict(settings), kind(settings)
    del values["name"]
    if of := getattr(made, "of", None):
        return of(image_shape, num_classes, **values)
    numbers = 1 if MODELS[settings.name].ours else image_shape[0]  # one number stands for all channels of a built-in network
    statistics, taken = {"mean": mean or (0.0,) * numbers, "std": std or (1.0,) * numbers}, signature(made).parameters
    return made(image_shape, num_classes, **values, **{name: value for name, value in statistics.items() if name in taken})


def kind(settings: Any) -> type[nn.Module]:
    """Returns the class of the network that `build` makes of `settings`."""
    return MODELS[settings.name].load()


def depth(settings: Any) -> int:
    """Returns the number of layers with weights; 0 if `settings` has no `depth`."""
    return getattr(settings, "depth", 0)


def stages(network: nn.Module) -> list[list[nn.Module]]:
    """Returns the modules that hold parameters, a list for each layer; one list of all modules without `stages()`."""
    own: Any = getattr(network, "stages", None)
    if own:
        return own()
    return [[module for module in network.modules() if _holds_tensors(module)]]


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for group in (module.parameters, module.buffers) for _ in group(recurse=False))
