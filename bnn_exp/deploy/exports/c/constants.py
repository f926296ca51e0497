"""The constants of the C export: weights in words, integer multipliers, thresholds and scores."""

from fractions import Fraction
from itertools import product

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.convolutions import border_classes
from bnn_exp.deploy.integers import StepLayer
from bnn_exp.deploy.mlp import LastLayer
from bnn_exp.errors import UserError

WORD = 32  # weights in a word
BLOCK = 64  # outputs that the C code computes together, at most


def words_of(bits: int) -> int:
    return -(-bits // WORD)


def row_words(packed: Tensor) -> np.ndarray:
    """Returns packed rows, uint8 [rows, bytes], as uint32 [rows, ⌈bytes/4⌉]: bit j is bit j mod 32 of word j div 32."""
    return np.ascontiguousarray(torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).numpy()).view("<u4")


def word_major(bits: Tensor) -> np.ndarray:
    """Returns the weights of look-ups, uint32 [words · outputs]: for each block of outputs, for each word, a word an output.

    Args:
        bits: uint8 [outputs, inputs], 0 or 1.
    """
    filled = torch.nn.functional.pad(bits, (0, -bits.shape[1] % WORD)).numpy()
    words = np.packbits(filled, axis=1, bitorder="little").view("<u4")
    return np.concatenate([words[first : first + BLOCK].T.ravel() for first in range(0, len(words), BLOCK)])


def thresholds_of_codes(layer: StepLayer, shape: tuple[int, int]) -> np.ndarray:
    """Returns one threshold for each output, int32 [outputs], where the layer's thresholds depend on the border.

    The C code counts a bit as 0 or 2, and an input outside of the picture as 1 (boolean: as 0). So its sum is 2u plus the sum
    of the weights outside. The product of the float layer is one function of that sum, at every position. The threshold t of a
    border class says that the step lies above the sum of u = t − 1, and not above the sum of u = t.

    Args:
        shape: (height, width) of the pictures.
    """
    weights = layer.weights().sum(3).numpy().astype(np.int64)  # [outputs, size, size]
    ones = layer.bits().sum(3, dtype=torch.int64).numpy()
    least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    above, up_to = np.full(layer.outputs, least, np.int64), np.full(layer.outputs, most, np.int64)
    for rows, columns in product(*(_places(length, layer.size) for length in shape)):
        inside = np.zeros((layer.size, layer.size), bool)
        inside[np.ix_(rows[1], columns[1])] = True
        found = layer.thresholds.numpy()
        t = found[rows[0] % len(found), columns[0] % len(found), : layer.outputs].astype(np.int64)
        high = ones[:, inside].sum(1)
        low = high * 0 if layer.zero == 0 else weights[:, inside].sum(1) - high
        outside = 0 if layer.zero == 0 else weights[:, ~inside].sum(1)
        above = np.where(t > low, np.maximum(above, 2 * np.minimum(t, high + 1) - 2 + outside), above)
        up_to = np.where(t <= high, np.minimum(up_to, 2 * np.maximum(t, low) + outside), up_to)
    if (above >= up_to).any():
        raise ValueError("the thresholds of the border classes contradict each other")
    return np.where(up_to < most, up_to, above + 1).astype(np.int32)


def _places(length: int, size: int) -> list[tuple[int, list[int]]]:
    """Returns the border class of each position of a row of `length`, and the places of the kernel that lie inside there.

    Equal positions are given once.
    """
    found = {}
    for position, kind in enumerate(border_classes(length, size).tolist()):
        inside = [place for place in range(size) if 0 <= position + place - size // 2 < length]
        found[kind, tuple(inside)] = (kind, inside)
    return list(found.values())


def integer_scores(layer: LastLayer) -> tuple[np.ndarray, np.ndarray]:
    """Returns integers a and b, int64 [outputs]: for the sum u of an output, a·u + b ≈ 2ᵏ · logit, with one k for all outputs.

    k is as large as 62 bits allow, so a·u + b is nearer to the exact number than float32.

    Raises:
        UserError: a scale or a shift of the last BatchNorm is not finite.
    """
    norm = layer.norm
    if not (norm.weight.isfinite().all() and norm.bias.isfinite().all()):
        raise UserError("export.format=c: the last BatchNorm has scales or shifts that are not finite numbers")
    scales, shifts = ([Fraction(x) for x in tensor.tolist()] for tensor in (norm.weight, norm.bias))
    a = [s * layer.scale / Fraction(layer.divisor) for s in scales]
    b = [s * o / Fraction(layer.divisor) + t for s, o, t in zip(scales, layer.offset.tolist(), shifts, strict=True)]
    reach = torch.maximum(layer.low.abs(), layer.high.abs()).tolist()
    peak = max(abs(x) * u + abs(y) + 1 for x, y, u in zip(a, b, reach, strict=True))
    unit = Fraction(2) ** (61 - (peak.numerator // peak.denominator).bit_length())
    return np.array([round(x * unit) for x in a], np.int64), np.array([round(x * unit) for x in b], np.int64)
