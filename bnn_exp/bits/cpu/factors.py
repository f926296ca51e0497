"""The gradient of a layer's weights in training on a CPU, as its two factors (`bnn_exp.bits.factors.Factors`)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu import processor
from bnn_exp.bits.cpu.backward import look_up
from bnn_exp.bits.cpu.kernels import weight_gradient
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.layout import by_neuron, factors_of, transposed, up_to, words_of
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.bits.reference import LANES
from bnn_exp.nn.packing import unpack

_TABLE_ROWS = 1024  # rows of a batch at a time: the look-up tables of four neurons (64 KiB) stay in the cache


@dataclass(frozen=True)
class BitFactors:
    """The gradient gradᵀ · x of weights [neurons, inputs] that act on bits x, as its two factors.

    Args:
        grad: the gradient at the layer's sums, float32 [rows, width], 0 in columns that belong to no neuron.
        columns: the bits x, packed along the columns, see `columns_of`.
        zero: the value of a bit 0 of x.
    """

    grad: Tensor
    columns: Tensor
    neurons: int
    inputs: int
    zero: float

    def entries(self, positions: Tensor) -> Tensor:
        """Returns the gradient at flat positions `positions`, int64, sorted: float32 of the same length."""
        values = np.float32(self.zero), np.float32(1)
        return _entries(weight_gradient.entries_of_bits, self, self.columns, positions, *values)

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 [neurons, inputs]."""
        return self._by_look_up() if processor.AVX512 else self._by_product()

    def _by_product(self) -> Tensor:
        return self.grad[:, : self.neurons].t() @ self.values()[:, : len(self.grad)].t()

    def _by_look_up(self) -> Tensor:
        grad, width = by_neuron(self.grad, self.neurons), up_to(self.inputs, LANES)
        gradient, part, factors = torch.zeros(len(grad), width), torch.empty(len(grad), width), factors_of(self.zero)
        for begin in range(0, grad.shape[1], _TABLE_ROWS):
            some = grad[:, begin : begin + _TABLE_ROWS]
            words = words_of(self.columns[:, begin // 8 : (begin + _TABLE_ROWS) // 8], width)
            share_out(partial(look_up, some, words, factors, part), len(grad))
            gradient += part
        return gradient[: self.neurons, : self.inputs]

    def values(self) -> Tensor:
        """Returns the values of xᵀ, float32 [inputs, rows], with the rows filled up to a multiple of 64."""
        shape = len(self.columns), 8 * self.columns.shape[1]
        return unpack(self.columns, shape).mul_(1 - self.zero).add_(self.zero)[: self.inputs]


@dataclass(frozen=True)
class PixelFactors:
    """The gradient gradᵀ · x of weights [neurons, inputs] that act on x = pixels / 255, as its two factors.

    Args:
        grad: the gradient at the layer's sums, float32 [rows, width], 0 in columns that belong to no neuron.
        pixels: uint8 [rows, inputs].
    """

    grad: Tensor
    pixels: Tensor
    neurons: int

    @property
    def inputs(self) -> int:
        """The number of inputs of each neuron."""
        return self.pixels.shape[1]

    def entries(self, positions: Tensor) -> Tensor:
        """Returns the gradient at flat positions `positions`, int64, sorted: float32 of the same length."""
        return _entries(weight_gradient.entries_of_pixels, self, transposed(self.pixels), positions).div_(255)

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 [neurons, inputs]."""
        return (self.grad[:, : self.neurons].t() @ self.pixels.float()).div_(255)


def _entries(
    kernel: Callable, factors: BitFactors | PixelFactors, columns: Tensor, positions: Tensor, *values: np.float32
) -> Tensor:
    """Returns the entries of a gradient at sorted flat positions, float32, each summed over the rows by `kernel`.

    Args:
        columns: the layer's inputs, transposed, as the kernel takes them.
        values: the values of the inputs' bits 0 and 1, if the inputs are bits.
    """
    grad, neurons, out = factors.grad, factors.neurons, torch.zeros(len(positions))
    starts = torch.searchsorted(positions, torch.arange(neurons + 1) * factors.inputs).numpy()
    inputs, entries = (positions % factors.inputs).numpy(), out.numpy()

    def of_neurons(first: int, last: int) -> None:
        begin, end = first * WIDTH, min(last * WIDTH, neurons)
        start, row = grad.data_ptr() + grad.itemsize * begin, grad.stride(0)
        sizes = row, len(grad), end - begin
        kernel(start, *sizes, columns.data_ptr(), columns.stride(0), starts[begin:], inputs, *values, entries)

    share_out(of_neurons, -(-neurons // WIDTH))
    return out
