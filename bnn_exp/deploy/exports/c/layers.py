"""Describes each layer of a packed network for the C export: the C functions that compute the layer, and their constants."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits import from_tiles, pack
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy.exports.c.constants import (
    integer_scores,
    row_words,
    thresholds_of_counts,
    word_major,
    words_of,
)
from bnn_exp.deploy.integers import Average, CodeLayer, IntegerLayer, StepLayer
from bnn_exp.deploy.mlp import LastLayer
from bnn_exp.errors import UserError
from bnn_exp.nn.requantize import fractions

MOST_BITS = 2**15 - 1  # a bit counts as up to 2, and the totals of a layer of bits have 16 bits
MOST = {"height": 65535, "width": 65535, "size": 255, "pool": 255, "outputs": 65535, "words": 65535}  # of a `struct layer`
ZEROS = "no_channels"  # the name of an array of zeros, the padding of most layers

Shape = tuple[int, int, int]  # height, width, channels


class Written(NamedTuple):
    """A layer in C."""

    call: str  # the function that computes the layer
    parts: set[str]  # the files of functions that the layer needs
    fields: dict[str, Any]  # of its `struct layer`
    arrays: dict[str, np.ndarray]  # the constants that fields point to
    result: int  # bytes that the layer writes


class _Gives(NamedTuple):
    """The part of a layer that turns its sums into codes, bits or scores."""

    parts: set[str]
    fields: dict[str, Any]
    arrays: dict[str, np.ndarray]


def written(layer: Any, shape: Shape, steps: bool) -> Written:
    """Returns the C form of a layer that reads pictures of `shape`.

    Args:
        steps: True if the scores of a last layer are 1[logit ≥ 0].

    Raises:
        UserError: a scale or a shift of the last BatchNorm is not finite, or the layer is too large.
    """
    height, width, channels = shape
    if isinstance(layer, Average):
        fields = {"height": height, "width": width, "channels": channels, "levels": layer.levels}
        return Written("average", {"code", "average"}, fields, _requantization(layer), channels)
    gives = _gives(layer, shape, steps)
    if isinstance(layer, IntegerLayer):
        positions = (height // layer.pool) * (width // layer.pool)
        fields, arrays = _convolution(layer.bits(), shape, layer.pool, layer.padding)
        call, parts = "convolve", set() if layer.takes == "codes" else {"read_bits"}
    elif layer.pixels:
        rows = unpacked(from_tiles(layer.tiles, layer.outputs), torch.uint8)[:, : layer.inputs]
        positions, shape = 1, (1, 1, layer.inputs)
        fields, arrays = _convolution(rows[:, None, None], shape, 1, torch.zeros(layer.inputs))
        call, parts = "convolve", set()
    else:
        rows = from_tiles(layer.tiles, layer.outputs)
        words = row_words(rows)
        positions, fields, arrays = 1, {"channels": 8 * rows.shape[1], "words": words.shape[1]}, {"weights": words}
        fields |= {"height": 1, "width": 1, "pool": 1}
        call, parts = "multiply", {"multiply"}
    fields |= {"outputs": layer.outputs} | gives.fields
    for name, most in MOST.items():
        if fields.get(name, 0) > most:
            raise UserError(f"export.format=c: the {name} of a layer is {fields[name]:,}\nallowed: up to {most:,}")
    return Written(call, parts | gives.parts, fields, arrays | gives.arrays, positions * gives.fields["result_bytes"])


def _convolution(bits: Tensor, shape: Shape, pool: int, padding: Tensor | None) -> tuple[dict, dict]:
    """Returns the fields and the arrays of a convolution.

    Args:
        bits: the weights, uint8 [out, size, size, channels].
        padding: the codes outside the picture. None: the layer reads bits.
    """
    height, width, channels = shape
    fields: dict[str, Any] = {"height": height, "width": width, "channels": channels, "size": bits.shape[1], "pool": pool}
    fields |= {"inputs": "&bits" if padding is None else "&codes", "words": words_of(bits[0].numel())}
    if padding is None and bits[0].numel() > MOST_BITS:
        raise UserError(f"export.format=c: a convolution adds up {bits[0].numel():,} bits\nallowed: up to {MOST_BITS:,}")
    arrays = {"weights": word_major(bits.flatten(1))}
    if padding is not None and padding.any():
        arrays["padding"] = padding.numpy()
    elif bits.shape[1] > 1:
        fields["padding"] = ZEROS
    return fields, arrays


def _gives(layer: Any, shape: Shape, steps: bool) -> _Gives:
    """Returns how the C code turns the sums of a layer into results. For the arguments see `written`."""
    outputs = layer.outputs
    if isinstance(layer, CodeLayer):
        fields = {"write": "write_codes", "result_bytes": outputs, "levels": layer.levels}
        return _Gives({"code", "write_codes"}, fields, {"gives.codes.bias": layer.bias.numpy(), **_requantization(layer)})
    if isinstance(layer, LastLayer) and not steps:
        scales, offsets = integer_scores(layer)
        fields = {"write": "write_scores", "result_bytes": 8 * outputs}
        return _Gives({"write_scores"}, fields, {"gives.scores.scales": scales, "gives.scores.offsets": offsets})
    if isinstance(layer, LastLayer):
        thresholds, rows = layer.folded(layer.norm)
        inverted, fields = pack(rows[None])[0].numpy(), {"write": "write_steps", "result_bytes": 8 * outputs}
        arrays = {"gives.bits.thresholds": thresholds.numpy().astype(np.int32), "gives.bits.inverted": inverted}
        return _Gives({"write_steps"}, fields, arrays)
    counted_twice = isinstance(layer, StepLayer) and layer.takes == "bits"
    own = layer.thresholds.flatten()[:outputs].numpy()
    fields = {"write": "write_bits", "result_bytes": -(-outputs // 8)}
    arrays = {"gives.bits.thresholds": thresholds_of_counts(layer, shape[:2]) if counted_twice else own}
    if layer.inverted.any():
        arrays["gives.bits.inverted"] = layer.inverted[: fields["result_bytes"]].numpy()
    return _Gives({"write_bits", "invert"} if layer.inverted.any() else {"write_bits"}, fields, arrays)


def _requantization(layer: CodeLayer | Average) -> dict[str, np.ndarray]:
    factors, shifts = (numbers.numpy().ravel() for numbers in fractions(layer.multiplier))
    return {"gives.codes.factors": factors, "gives.codes.shifts": shifts.astype(np.uint8)}
