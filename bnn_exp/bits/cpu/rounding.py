"""Rounds gradients at random to 4 or 8 bits, and computes the products of a backward pass from them, as sums of integers.

Every product rounds its gradient anew, with one scale for each row: a row is a sample in the gradient of the inputs, and a
neuron in the gradient of the weights. `entries` of a weight gradient stay unrounded, because they cost less than the rounding.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu import processor
from bnn_exp.bits.cpu.backward import ByProduct, ToInputs
from bnn_exp.bits.cpu.factors import BitFactors, PixelFactors
from bnn_exp.bits.cpu.kernels import digits
from bnn_exp.bits.cpu.kernels.digits import BASE, MOST, MOST_ROWS
from bnn_exp.bits.cpu.layout import by_neuron, columns_of, transposed, up_to
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.bits.reference import LANES, to_tiles
from bnn_exp.nn.product import pixel_sums

if TYPE_CHECKING:
    from bnn_exp.bits.packing import PackedBits  # at run time this import would be circular


@dataclass(frozen=True)
class Rounding:
    """Stochastic rounding to 4 or 8 `bits`. `key`, 32 bits, determines all random numbers."""

    bits: int
    key: int

    def __call__(self, x: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Rounds rows `begin` to `end` of float32 [rows, columns].

        Returns:
            The integers, int8, and the real number that the integer 1 of each row stands for, float32.
        """
        codes, scales = torch.empty(end - begin, x.shape[1], dtype=torch.int8), torch.empty(end - begin)
        digits.round_rows(x.numpy(), begin, end, MOST[self.bits], np.uint32(self.key), codes.numpy(), scales.numpy())
        return codes, scales


def product(codes: Tensor, scales: Tensor, bits: int, tiles: Tensor, zero: float, out: Tensor) -> None:
    """Computes scales · codes · V into `out`, float32 [rows, width].

    Args:
        codes: integers of `bits` bits, int8 [rows, neurons], with neurons a multiple of 64.
        scales: float32 [rows].
        tiles: the bits of V [neurons, width], packed along the neurons, as tiles of 64 columns of V.
        zero: the value of a bit 0 of V.
    """
    places = [codes]
    if MOST[bits] > digits.DIGIT:
        places = [torch.empty_like(codes), torch.empty_like(codes)]
        digits.split_digits(codes.numpy(), *(place.numpy() for place in places))
    parts = [(place, begin) for place in places for begin in range(0, codes.shape[1], MOST_ROWS)]
    for i, (place, begin) in enumerate(parts):
        some = tiles[:, begin // 8 : (begin + MOST_ROWS) // 8].contiguous()
        base = 0 if i == 0 else BASE if begin == 0 else 1
        scale = scales if i == len(parts) - 1 else torch.ones_like(scales)
        here, sizes = place.data_ptr() + begin, (place.stride(0), len(place), 8 * some.shape[1])
        to = out.data_ptr(), out.stride(0)
        digits.digit_product(here, *sizes, some.data_ptr(), out.shape[1], int(zero), np.float32(base), scale.numpy(), *to)


class RoundedByProduct(ByProduct):
    """The product grad · V of a rounded gradient, by torch; see `bnn_exp.bits.cpu.backward.ToInputs`."""

    def __init__(self, weights: "PackedBits", width: int, zero: float, rounding: Rounding):
        super().__init__(weights, width, zero)
        self.rounding = rounding

    def rows(self, grad: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Rounds rows `begin` to `end` of `grad`, float32, and computes the same rows of `out`, float32 [rows, width]."""
        codes, scales = self.rounding(grad, begin, end)
        super().rows(codes.float(), 0, len(codes), out[begin:end])
        out[begin:end].mul_(scales[:, None])


class RoundedByLookUp:
    """The product grad · V of a rounded gradient, by look-ups of digits; see `bnn_exp.bits.cpu.backward.ToInputs`."""

    shares_rows = True

    def __init__(self, weights: "PackedBits", width: int, zero: float, rounding: Rounding):
        self.width, self.zero, self.rounding = width, zero, rounding
        self.tiles = to_tiles(columns_of(weights.packed))

    def rows(self, grad: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Rounds rows `begin` to `end` of `grad`, float32, and computes the same rows of `out`, float32 [rows, width]."""
        codes, scales = self.rounding(grad, begin, end)
        product(codes, scales, self.rounding.bits, self.tiles, self.zero, out[begin:end])


def to_inputs(weights: "PackedBits", width: int, zero: float, rounding: Rounding) -> ToInputs:
    """Returns the `ToInputs` of a rounded gradient that is fastest on this processor. Its result has `width` columns."""
    return (RoundedByLookUp if processor.AVX512 else RoundedByProduct)(weights, width, zero, rounding)


@dataclass(frozen=True)
class RoundedBitFactors(BitFactors):
    """A `BitFactors` whose `whole` first rounds the gradient at the layer's sums."""

    rounding: Rounding

    def _by_look_up(self) -> Tensor:
        grad, tiles = by_neuron(self.grad, self.neurons), to_tiles(self.columns)
        gradient = torch.empty(len(grad), up_to(self.inputs, LANES))

        def of_neurons(begin: int, end: int) -> None:
            codes, scales = self.rounding(grad, begin, end)
            product(codes, scales, self.rounding.bits, tiles, self.zero, gradient[begin:end])

        share_out(of_neurons, len(grad))
        return gradient[: self.neurons, : self.inputs]

    def _by_product(self) -> Tensor:
        grad = by_neuron(self.grad, self.neurons)
        codes, scales = self.rounding(grad, 0, len(grad))
        gradient = (codes.double() @ self.values().double().t()).float().mul_(scales[:, None])
        return gradient[: self.neurons, : self.inputs]


@dataclass(frozen=True)
class RoundedPixelFactors(PixelFactors):
    """A `PixelFactors` whose `whole` first rounds the gradient at the layer's sums."""

    rounding: Rounding

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 [neurons, inputs].

        Its sums are exact where the processor multiplies int8 (`bnn_exp.nn.product`).
        """
        grad = by_neuron(self.grad, self.neurons)
        codes, scales = self.rounding(grad, 0, len(grad))
        sums = pixel_sums(transposed(self.pixels), codes).t()
        return (sums * (scales / 255)[:, None])[: self.neurons]
