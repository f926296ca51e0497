"""The networks a configuration can name, and what each costs."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from torch import nn

from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.models.vgg import VGG


def build(
    settings,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> nn.Module:
    """The network that `settings` (a choice of the group `model`) describes, for images (channels, height, width).

    `mean` and `std` are those of the train pixels, per channel, as numbers from 0 to 1: a network may standardise by them.
    """
    values = asdict(settings)
    if values.pop("name") == "mlp":
        values |= values.pop("batch_norm")
        return kind(settings)(math.prod(image_shape), num_classes, **values)
    return kind(settings)(image_shape, num_classes, **values, mean=mean, std=std)


def kind(settings) -> type[nn.Module]:
    """The class of the network that `build` makes of `settings`."""
    return {"mlp": MLP, "bncvl": BNCVLNet, "vgg": VGG}[settings.name]


def depth(settings) -> int:
    """How many layers with weights that network has."""
    if settings.name == "mlp":
        return settings.num_layers
    return len(settings.channels) * settings.convolutions + len(getattr(settings, "dense", ())) + 1
