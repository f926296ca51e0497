"""The gradients of a layer of bits from errors that are rounded at random to 4 or 8 bits: sums of integers.

Each product has errors of its own, rounded with one scale for each of its rows: by sample for the gradient of the inputs, by
neuron for that of the weights. The entries of a gradient that a random mask selects cost less than the rounding, and are those
of the exact errors.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu import digits
from bnn_exp.bits.cpu.backward import LOOKS_UP, BitFactors, PixelFactors, by_neuron
from bnn_exp.bits.cpu.digits import BASE, MOST, MOST_ROWS
from bnn_exp.bits.cpu.forward import columns_of, filled, share_out, transposed, up_to
from bnn_exp.bits.packing import PackedBits
from bnn_exp.bits.reference import LANES, to_tiles
from bnn_exp.nn.product import pixel_sums


@dataclass(frozen=True)
class Rounding:
    """How to round: to 4 or 8 `bits`, by chance that `key`, 32 bits, decides."""

    bits: int
    key: int

    def __call__(self, x: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Rows `begin` to `end` of float32 [rows, columns] → int8, and what 1 stands for in each row, float32."""
        codes, scales = torch.empty(end - begin, x.shape[1], dtype=torch.int8), torch.empty(end - begin)
        digits.round_rows(x.numpy(), begin, end, MOST[self.bits], np.uint32(self.key), codes.numpy(), scales.numpy())
        return codes, scales


def product(codes: Tensor, scales: Tensor, bits: int, tiles: Tensor, zero: float, out: Tensor) -> None:
    """scales · codes · V → `out`, float32 [rows, width]; codes int8 [rows, neurons], a multiple of 64, of so many bits, and the
    bits of V along the neurons as tiles of the inputs."""
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


class RoundedToInputs:
    """As `ToInputs`."""

    def __init__(self, weights: PackedBits, width: int, zero: float, rounding: Rounding):
        self.width, self.zero, self.rounding = width, zero, rounding
        if LOOKS_UP:
            self.tiles = to_tiles(columns_of(weights.packed))
        else:
            self.v = filled(weights.values(zero), width)

    def rows(self, errors: Tensor, begin: int, end: int, out: Tensor) -> None:
        """As that of `ToInputs`."""
        codes, scales = self.rounding(errors, begin, end)
        if LOOKS_UP:
            product(codes, scales, self.rounding.bits, self.tiles, self.zero, out[begin:end])
        else:
            torch.mm(codes[:, : len(self.v)].float(), self.v, out=out[begin:end]).mul_(scales[:, None])


@dataclass(frozen=True)
class RoundedBitFactors(BitFactors):
    """As `BitFactors`."""

    rounding: Rounding

    def whole(self) -> Tensor:
        """As that of BitFactors, from rounded errors."""
        errors, tiles = by_neuron(self.errors, self.neurons), to_tiles(self.columns) if LOOKS_UP else self.values()
        gradient = torch.empty(len(errors), up_to(self.inputs, LANES))

        def of_neurons(begin: int, end: int) -> None:
            codes, scales = self.rounding(errors, begin, end)
            product(codes, scales, self.rounding.bits, tiles, self.zero, gradient[begin:end])

        if LOOKS_UP:
            share_out(of_neurons, len(errors))
        else:
            codes, scales = self.rounding(errors, 0, len(errors))
            gradient = (codes.double() @ tiles.double().t()).float().mul_(scales[:, None])
        return gradient[: self.neurons, : self.inputs]


@dataclass(frozen=True)
class RoundedPixelFactors(PixelFactors):
    """As `PixelFactors`."""

    rounding: Rounding

    def whole(self) -> Tensor:
        """As that of PixelFactors, from rounded errors; exact sums where the processor multiplies int8 (`nn.product`)."""
        errors = by_neuron(self.errors, self.neurons)
        codes, scales = self.rounding(errors, 0, len(errors))
        sums = pixel_sums(transposed(self.pixels), codes).t()
        return (sums * (scales / 255)[:, None])[: self.neurons]
