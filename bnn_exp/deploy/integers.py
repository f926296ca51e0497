"""The layers of a packed CNN in integers, from the pixels to the layer before the last.

A layer reads codes or bits and gives codes or bits (`bnn_exp.bits.convolutions` defines both). Its sums u = Σ x·w are whole
numbers. A dense layer is a convolution of size 1 on pictures of one position. Exports and compiled networks walk these layers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.bits import LANES, from_tiles, pack, to_tiles
from bnn_exp.bits.convolutions import (
    average_codes,
    bits_of_bits,
    bits_of_codes,
    border_classes,
    codes_of_codes,
    from_rows,
    thresholds_of,
    to_rows,
)
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy.check import Evaluating
from bnn_exp.deploy.fold import thresholds
from bnn_exp.deploy.tiled import Tiled
from bnn_exp.nn.known_classes import exact

if TYPE_CHECKING:
    from bnn_exp.bits.cpu.convolutions import Fields  # at run time the first use imports numba


class IntegerLayer(Tiled):
    """A convolution with packed weights, stride 1 and padding by size // 2, and max-pooling after it.

    Args:
        bits: the weights, uint8 [out, size, size, channels], 0 or 1.
        encoding: the encoding of the weights.
        pool: the side of the pooling windows; 1: no pooling.
        padding: uint8 [channels], the codes outside the picture. None: the layer reads bits.
    """

    def __init__(self, bits: Tensor, encoding: str, pool: int, padding: Tensor | None):
        super().__init__()
        self.outputs, self.size, _, self.channels = bits.shape
        self.encoding, self.pool, self.zero = encoding, pool, 0 if encoding == "boolean" else -1
        self.takes = "bits" if padding is None else "codes"
        self.register_buffer("tiles", to_tiles(to_rows(bits, padding is not None)))
        self.register_buffer("padding", padding)

    def bits(self) -> Tensor:
        """Returns the weights, uint8 [out, size, size, channels], 0 or 1."""
        return from_rows(from_tiles(self.tiles, self.outputs), self.size, self.channels, self.takes == "codes")

    def weights(self) -> Tensor:
        """Returns the factors w of the sums, int32 [out, size, size, channels]: 1 for a bit 1, `zero` for a bit 0."""
        return factors(self.bits(), self.encoding)


@exact
class CodeLayer(IntegerLayer):
    """A layer that gives codes, from codes: clamp(rint((u + bias) · multiplier), 0, levels), max-pooled.

    Args:
        bits, encoding, pool, padding: see `IntegerLayer`.
        bias, multiplier: int32 and float32 [out], see `bnn_exp.nn.requantize`.
        levels: the greatest code, up to 255.
    """

    gives = "codes"

    def __init__(self, bits: Tensor, encoding: str, pool: int, padding: Tensor, bias: Tensor, multiplier: Tensor, levels: int):
        super().__init__(bits, encoding, pool, padding)
        self.levels = levels
        self.register_buffer("bias", bias)
        self.register_buffer("multiplier", multiplier)

    def forward(self, x: Tensor) -> Tensor:
        return codes_of_codes(x, *self._constants())

    def fields(self, shape: Sequence[int]) -> "Fields":
        """Returns the layer as a part of a compiled network, for pictures of `shape` (height, width, channels)."""
        from bnn_exp.bits.cpu.convolutions import code_fields

        return code_fields(shape, *self._constants())

    def _constants(self) -> tuple:
        return self.tiles, self.padding, self.size, self.zero, self.bias, self.multiplier, self.levels, self.pool


@exact
class StepLayer(IntegerLayer):
    """A layer that gives bits, from codes or bits: 1[norm(max-pooled product) ≥ 0], by integer thresholds.

    The float layer computes the product unit · u + offset. If the layer reads bits, the offset depends on the border class,
    because the float layer pads with zeros, and no bit has the value 0 (boolean: the offset is 0 everywhere).

    Args:
        bits, encoding, pool, padding: see `IntegerLayer`.
        norm: the BatchNorm after the convolution and its pooling.
        shape: (height, width) of the pictures.
        unit: the factor of the sums, a power of two.
        offset: float32 [1, 1, out], or [size, size, out] by border classes.
    """

    gives = "bits"

    def __init__(
        self,
        bits: Tensor,
        encoding: str,
        pool: int,
        padding: Tensor | None,
        norm: nn.BatchNorm2d,
        unit: float,
        offset: Tensor,
    ):
        super().__init__(bits, encoding, pool, padding)
        ones, inputs, peak = bits.sum((1, 2, 3), dtype=torch.int64), bits[0].numel(), 255 if self.takes == "codes" else 1
        low, high = self.zero * peak * (inputs - ones), peak * ones  # the least and the greatest sum of each output

        def decide(sums: Tensor) -> Tensor:
            product = (sums * unit + offset).to(torch.float32)  # exact: whole numbers times a power of two, below 2²⁴
            return norm(product.flatten(0, 1)[:, :, None, None]).view(product.shape) >= 0

        falling = (norm.weight < 0).expand(offset.shape)
        with torch.no_grad():
            found, _ = thresholds(decide, low.expand(offset.shape), high.expand(offset.shape), falling)
        self.register_buffer("thresholds", thresholds_of(found, len(self.tiles)))
        self.register_buffer("inverted", pack(F.pad(falling[0, 0], (0, LANES * len(self.tiles) - self.outputs))[None])[0])

    def inverted_outputs(self) -> Tensor:
        """Returns a bool for each output: True if its bit is 1 below the threshold."""
        return unpacked(self.inverted[None], torch.bool)[0, : self.outputs]

    def forward(self, x: Tensor) -> Tensor:
        constants = self.size, self.outputs, self.zero, self.thresholds, self.inverted, self.pool
        if self.takes == "bits":
            return bits_of_bits(x, self.tiles, self.channels, *constants)
        return bits_of_codes(x, self.tiles, self.padding, *constants)

    def fields(self, shape: Sequence[int]) -> "Fields":
        """Returns the layer as a part of a compiled network, for pictures of `shape` (height, width, channels)."""
        from bnn_exp.bits.cpu.convolutions import step_fields

        constants = self.size, self.outputs, self.zero, self.thresholds, self.inverted, self.pool
        return step_fields(shape, self.tiles, self.padding, *constants)


@exact
class Average(Evaluating):
    """The mean of the codes over all positions, as a code: clamp(rint(Σ x · multiplier), 0, levels).

    Args:
        multiplier: a float32 without dimensions, see `bnn_exp.nn.requantize`.
    """

    takes = gives = "codes"

    def __init__(self, channels: int, multiplier: Tensor, levels: int):
        super().__init__()
        self.channels, self.levels = channels, levels
        self.register_buffer("multiplier", multiplier)

    def forward(self, x: Tensor) -> Tensor:
        return average_codes(x, self.multiplier, self.levels)

    def fields(self, shape: Sequence[int]) -> "Fields":
        """Returns the layer as a part of a compiled network, for pictures of `shape` (height, width, channels)."""
        from bnn_exp.bits.cpu.convolutions import mean_fields

        return mean_fields(shape, self.multiplier, self.levels)


def factors(bits: Tensor, encoding: str) -> Tensor:
    """Returns the factors w of the sums, int32: 1 for a bit 1, and for a bit 0 the number 0 (boolean) or −1."""
    return bits.to(torch.int32) if encoding == "boolean" else 2 * bits.to(torch.int32) - 1


def border_offsets(weights: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns −Σ w over the places of the kernel that lie inside the picture, int32 [size, size, out], by border classes.

    Classes that do not occur in the picture hold 0.

    Args:
        weights: int32 [out, size, size, channels].
        shape: (height, width) of the pictures.
    """
    out, size, _, channels = weights.shape
    picture = torch.ones(1, channels, *shape, dtype=torch.float64)
    inside = F.conv2d(picture, weights.permute(0, 3, 1, 2).double(), padding=size // 2)[0].permute(1, 2, 0)
    offsets = weights.new_zeros(size, size, out)
    rows, columns = (border_classes(length, size) for length in shape)
    offsets[rows[:, None], columns] = -inside.to(torch.int32)
    return offsets
