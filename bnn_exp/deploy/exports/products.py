"""The layers of a packed network as products of values: the form in which exports compute them.

The value of a bit is 0 or 1 (boolean), else −1 or 1. The value of a pixel or a code is the number itself. A product is the
whole number P = Σ w·x, with the value 0 outside the picture. For codes it equals the sum u of the layer. For bits b and
u = Σ w·b it is P = 2u − Σ w, or P = u (boolean). So one threshold for each output decides a bit everywhere, also at the border.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_exp.bits import from_tiles
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy.integers import StepLayer, border_offsets
from bnn_exp.deploy.mlp import DeployedLayer, HiddenLayer


def in_channels_first(layer: DeployedLayer, shape: Sequence[int]) -> Tensor:
    """Returns the weights of a layer after the last picture, uint8 0 and 1 [out, inputs], in the order channels, rows, columns.

    Args:
        shape: (height, width, channels) of the picture that the layer reads as one row.
    """
    height, width, channels = shape
    bits = unpacked(from_tiles(layer.tiles, layer.outputs), torch.uint8)
    places = bits.unflatten(1, (height * width, -1))[:, :, :channels]
    return places.transpose(1, 2).flatten(1)


def step_threshold(layer: StepLayer, shape: Sequence[int]) -> Tensor:
    """Returns the threshold of the products of a layer, int64 [out]: (P ≥ threshold) = (u ≥ the layer's threshold) everywhere.

    Args:
        shape: (height, width) of the pictures that the layer reads.

    Raises:
        ValueError: no single threshold gives the bits of all border classes, so no BatchNorm has made the layer.
    """
    weights, found = layer.weights(), layer.thresholds[..., : layer.outputs].long()
    boolean, bits = layer.zero == 0, layer.takes == "bits"
    unit, offset = (1, 0) if boolean or not bits else (2, border_offsets(weights, shape))
    peak = 1 if bits else 255
    low, high = (peak * part.sum((1, 2, 3)) for part in (weights.clamp(max=0), weights.clamp(min=0)))
    never = torch.iinfo(torch.int64).max
    # The threshold is greater than the product of the sum found − 1, and at most the product of the sum found.
    above = torch.where(found > low, unit * (found - 1) + offset, -never).amax((0, 1))
    upto = torch.where(found <= high, unit * found + offset, never).amin((0, 1))
    if (above >= upto).any():
        raise ValueError("the thresholds of the borders are not those of one BatchNorm")
    return torch.where(upto < never, upto, above + 1)


def hidden_threshold(layer: HiddenLayer) -> tuple[Tensor, Tensor]:
    """Returns the thresholds of the products of an MLP's hidden layer, int64 [out], and bools: True if one is inverted."""
    found = layer.thresholds[: layer.outputs].long()
    inverted = unpacked(layer.inverted[None], torch.bool)[0, : layer.outputs]
    return layer.scale * found + layer.offset, inverted
