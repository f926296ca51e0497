"""The networks a configuration can name, and what each costs."""

from collections.abc import Sequence
from dataclasses import asdict
from inspect import signature

from torch import nn

from bnn_exp.config.models import MODELS
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.models.vgg import VGG

__all__ = ["MLP", "VGG", "BNCVLNet", "build", "kind", "stages"]


def build(
    settings,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """The network that `settings` (a choice of the group `model`) describes, for images (channels, height, width).

    `mean` and `std` are those of the train pixels, per channel, as numbers from 0 to 1: a network may standardise by them.
    Without them they are 0 and 1.
    """
    values, made = asdict(settings), kind(settings)
    del values["name"]
    if of := getattr(made, "of", None):
        return of(image_shape, num_classes, **values)
    numbers = 1 if MODELS[settings.name].ours else image_shape[0]  # ours take one of all channels too
    statistics, taken = {"mean": mean or (0.0,) * numbers, "std": std or (1.0,) * numbers}, signature(made).parameters
    return made(image_shape, num_classes, **values, **{name: value for name, value in statistics.items() if name in taken})


def kind(settings) -> type[nn.Module]:
    """The class of the network that `build` makes of `settings`."""
    return MODELS[settings.name].load()


def depth(settings) -> int:
    """How many layers with weights that network has; 0 where its settings have no `depth`."""
    return getattr(settings, "depth", 0)


def stages(network: nn.Module) -> list[list[nn.Module]]:
    """Layer by layer, the modules that hold the parameters of a network; one layer of all where it has no `stages()`."""
    if hasattr(network, "stages"):
        return network.stages()
    return [[module for module in network.modules() if _owned(module)]]


def _owned(module: nn.Module) -> bool:
    """Whether a module has parameters or buffers of its own."""
    return any(True for group in (module.parameters, module.buffers) for _ in group(recurse=False))
