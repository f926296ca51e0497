"""The networks a configuration can name, and what each costs."""

import math

from torch import nn

from bnn_exp.models.mlp import MLP


def build(settings, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The network that `settings` (a choice of the group `model`) describes, for images (channels, height, width)."""
    return MODELS[settings.name](settings, image_shape, num_classes)


def _mlp(settings, image_shape, num_classes) -> MLP:
    return MLP(
        math.prod(image_shape),
        num_classes,
        settings.hidden_size,
        settings.num_layers,
        settings.encoding,
        settings.window,
        settings.binarize_logits,
        settings.batch_norm.affine,
        settings.batch_norm.running_stats,
    )


MODELS = {"mlp": _mlp}
