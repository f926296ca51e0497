"""Describes each layer of a packed network for the C export: the C functions that compute the layer, and their constants."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bnn_exp.bits import from_tiles, pack
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy.c_constants import (
    BLOCK,
    integer_scores,
    multipliers,
    row_words,
    thresholds_of_codes,
    word_major,
    words_of,
)
from bnn_exp.deploy.integers import Average, CodeLayer, IntegerLayer, StepLayer
from bnn_exp.deploy.mlp import LastLayer

__all__ = ["BLOCK", "Written", "written"]

Shape = tuple[int, int, int]  # height, width, channels


class Written(NamedTuple):
    """A layer in C."""

    call: str  # the function that computes it
    parts: set[str]  # the files of functions that it needs
    fields: dict[str, Any]  # of its `struct layer`
    arrays: dict[str, np.ndarray]  # the constants that fields point to


def written(layer: nn.Module, shape: Shape, steps: bool) -> Written:
    """Returns the C form of a layer that reads pictures of `shape`.

    Args:
        steps: True if the scores of a last layer are 1[logit ≥ 0].
    """
    height, width, channels = shape
    sizes = {"height": height, "width": width, "channels": channels}
    if isinstance(layer, Average):
        factors, shifts = multipliers(layer.multiplier)
        fields = sizes | {"levels": layer.levels, "result_size": channels}
        return Written("average", {"code", "average"}, fields, {"factors": factors, "shifts": shifts})
    reads = _reads(layer, shape)
    gives = _gives(layer, shape, steps)
    return Written(reads.call, reads.parts | gives.parts, reads.fields | gives.fields, reads.arrays | gives.arrays)


def _reads(layer: Any, shape: Shape) -> Written:
    """Returns the part of a layer that computes its sums."""
    height, width, channels = shape
    if isinstance(layer, IntegerLayer):
        bits, codes, sizes = layer.bits(), layer.takes == "codes", {"size": layer.size, "pool": layer.pool}
    elif layer.pixels:
        rows = unpacked(from_tiles(layer.tiles, layer.outputs), torch.uint8)
        height, width, channels = 1, 1, layer.inputs
        bits, codes, sizes = rows[:, :channels], True, {"size": 1, "pool": 1}
    else:
        rows = from_tiles(layer.tiles, layer.outputs)
        words = row_words(rows)
        fields = {"bytes": rows.shape[1], "words": words.shape[1]}
        return Written("multiply", {"multiply"}, fields | {"outputs": layer.outputs}, {"weights": words})
    width_in_bytes = channels if codes else -(-channels // 8)
    fields = {"inputs": "&codes" if codes else "&bits", "height": height, "width": width, "channels": channels}
    fields |= {"bytes": width_in_bytes, **sizes, "outputs": layer.outputs, "words": words_of(bits[0].numel())}
    arrays = {"weights": word_major(bits.flatten(1))}
    if sizes["size"] > 1:
        arrays["padding"] = layer.padding.numpy() if codes else np.zeros(width_in_bytes, np.uint8)
    return Written("convolve", set() if codes else {"read_bits"}, fields, arrays)


def _gives(layer: Any, shape: Shape, steps: bool) -> Written:
    """Returns the part of a layer that turns its sums into codes, bits or scores."""
    outputs, arrays = layer.outputs, {}
    if isinstance(layer, CodeLayer):
        write, parts, of_position = "write_codes", {"code"}, outputs
        factors, shifts = multipliers(layer.multiplier)
        arrays = {"bias": layer.bias.numpy(), "factors": factors, "shifts": shifts}
    elif isinstance(layer, LastLayer) and not steps:
        write, parts, of_position = "write_scores", set(), 8 * outputs
        arrays["scales"], arrays["offsets"] = integer_scores(layer)
    elif isinstance(layer, LastLayer):
        write, parts, of_position = "write_steps", set(), 8 * outputs
        thresholds, inverted = layer.folded(layer.norm)
        arrays = {"thresholds": thresholds.numpy().astype(np.int32), "inverted": pack(inverted[None])[0].numpy()}
    else:
        write, parts, of_position = "write_bits", set(), -(-outputs // 8)
        arrays = {"thresholds": _thresholds(layer, shape)}
        if layer.inverted.any():
            parts, arrays["inverted"] = {"invert"}, layer.inverted[:of_position].numpy()
    pool = getattr(layer, "pool", 1)
    positions = (shape[0] // pool) * (shape[1] // pool) if isinstance(layer, IntegerLayer) else 1
    fields = {"result_bytes": of_position, "result_size": of_position * positions, "write": write}
    if isinstance(layer, CodeLayer):
        fields["levels"] = layer.levels
    return Written("", {write, *parts}, fields, arrays)


def _thresholds(layer: Any, shape: Shape) -> np.ndarray:
    if isinstance(layer, StepLayer) and layer.takes == "bits":
        found = thresholds_of_codes(layer, shape[:2])
    else:
        found = layer.thresholds.flatten()[: layer.outputs].numpy()
    return found.astype(np.int32)
