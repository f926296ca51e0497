"""The constants of the C export: weights in words, integer multipliers, thresholds and scores."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from bnn_exp.deploy.exports.products import step_threshold
from bnn_exp.deploy.integers import StepLayer
from bnn_exp.deploy.mlp import LastLayer
from bnn_exp.errors import UserError

WORD = 32  # weights in a word
BLOCK = 64  # outputs that the C code computes together, at most


def words_of(bits: int) -> int:
    """Returns the number of words that hold `bits` weights."""
    return -(-bits // WORD)


def row_words(packed: Tensor) -> np.ndarray:
    """Returns packed rows, uint8 [rows, bytes], as uint32 [rows, ⌈bytes/4⌉]: bit j is bit j mod 32 of word j div 32."""
    return np.ascontiguousarray(torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).numpy()).view("<u4")


def word_major(bits: Tensor) -> np.ndarray:
    """Returns weights in the order of the look-ups, uint32 [words · outputs]: by blocks of outputs, by words, by outputs.

    Args:
        bits: uint8 [outputs, inputs], 0 or 1.
    """
    filled = torch.nn.functional.pad(bits, (0, -bits.shape[1] % WORD)).numpy()
    words = np.packbits(filled, axis=1, bitorder="little").view("<u4")
    return np.concatenate([words[first : first + BLOCK].T.ravel() for first in range(0, len(words), BLOCK)])


def thresholds_of_counts(layer: StepLayer, shape: Sequence[int]) -> np.ndarray:
    """Returns one threshold for each output of a layer that reads bits, int32 [outputs].

    The C code counts a bit as 0 or 2, and an input outside the picture as 1 (boolean: as 0). So its sum is P + Σ w for the
    product P of `bnn_exp.deploy.exports.products`, or 2 · P (boolean). The threshold is one of these sums.

    Args:
        shape: (height, width) of the pictures.

    Raises:
        ValueError: see `step_threshold`.
    """
    threshold = step_threshold(layer, shape)
    counted = 2 * threshold if layer.zero == 0 else threshold + layer.weights().sum((1, 2, 3))
    return counted.numpy().astype(np.int32)


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
