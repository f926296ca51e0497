"""Rounds gradients at random to 4 or 8 bits, and computes the products of a backward pass from them, as sums of integers.

Every product rounds its gradient anew, with one scale for each row: a row is a sample in the gradient of the inputs, and a
neuron in the gradient of the weights. `entries` of a weight gradient stay unrounded, because they cost less than the rounding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.kernels import digits
from bnn_exp.bits.cpu.kernels.digits import BASE, MOST, MOST_ROWS
from bnn_exp.bits.cpu.layout import by_neuron, transposed
from bnn_exp.bits.cpu.ways import ENDLESS, Product, values_of
from bnn_exp.bits.reference import to_tiles
from bnn_exp.nn import processor
from bnn_exp.nn.product import pixel_sums


@dataclass(frozen=True)
class Rounding:
    """Stochastic rounding to 4 or 8 `bits`, and the way to multiply rounded gradients (`bnn_exp.bits.cpu.ways.Way`).

    `key`, 32 bits, determines all random numbers.
    """

    bits: int
    key: int

    @property
    def most(self) -> int:
        """The most summands of one product: a row of any length has one scale."""
        return ENDLESS

    def __call__(self, x: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Rounds rows `begin` to `end` of float32 [rows, columns].

        Returns:
            The integers, int8, and the real number that the integer 1 of each row stands for, float32.
        """
        codes, scales = torch.empty(end - begin, x.shape[1], dtype=torch.int8), torch.empty(end - begin)
        digits.round_rows(x.numpy(), begin, end, MOST[self.bits], np.uint32(self.key), codes.numpy(), scales.numpy())
        return codes, scales

    def by_bits(self, columns: Tensor, summands: int, width: int, zero: float) -> Product:
        """Returns the product with bits that is fastest on this processor. See `Way`."""
        return (RoundedByLookUp if processor.AVX512 else RoundedByProduct)(self, columns, width, zero)

    def by_pixels(self, grad: Tensor, pixels: Tensor, neurons: int) -> Tensor:
        """Returns gradᵀ · pixels / 255, float32 [neurons, inputs], of the rounded gradient. See `Way`.

        Its sums are exact where the processor multiplies int8 (`bnn_exp.nn.product`).
        """
        turned = by_neuron(grad, neurons)
        codes, scales = self(turned, 0, len(turned))
        sums = pixel_sums(transposed(pixels), codes).t()
        return (sums * (scales / 255)[:, None])[:neurons]


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


class RoundedByProduct:
    """The product of a rounded gradient by torch, in float64: its sums are exact. See `bnn_exp.bits.cpu.ways.Product`."""

    shares_rows = False

    def __init__(self, rounding: Rounding, columns: Tensor, width: int, zero: float):
        self.rounding, self.width = rounding, width
        self.values = values_of(columns, width, zero).double().t()

    def rows(self, numbers: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Rounds rows `begin` to `end` of `numbers`, float32, and computes the same rows of `out`, float32 [rows, width]."""
        codes, scales = self.rounding(numbers, begin, end)
        out[begin:end] = (codes.double() @ self.values).float().mul_(scales[:, None])


class RoundedByLookUp:
    """The product of a rounded gradient by look-ups of digits. See `bnn_exp.bits.cpu.ways.Product`."""

    shares_rows = True

    def __init__(self, rounding: Rounding, columns: Tensor, width: int, zero: float):
        self.rounding, self.width, self.zero, self.tiles = rounding, width, zero, to_tiles(columns)

    def rows(self, numbers: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Rounds rows `begin` to `end` of `numbers`, float32, and computes the same rows of `out`, float32 [rows, width]."""
        codes, scales = self.rounding(numbers, begin, end)
        product(codes, scales, self.rounding.bits, self.tiles, self.zero, out[begin:end])
