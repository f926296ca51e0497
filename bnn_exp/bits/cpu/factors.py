"""The gradient of a layer's weights in training on a CPU, as its two factors (`bnn_exp.bits.factors.Factors`)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.kernels import weight_gradient
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.layout import by_neuron, transposed, up_to
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.bits.cpu.ways import InFloat32, Product, Way
from bnn_exp.bits.reference import LANES


@dataclass(frozen=True)
class BitFactors:
    """The weight gradient gradᵀ · x [neurons, inputs] of a layer on bits x, stored as its two factors.

    Args:
        grad: the gradient at the layer's sums, float32 [rows, width], 0 in columns that belong to no neuron.
        columns: the bits x, transposed: row k packs input k of all samples (`columns_of`).
        zero: the value of a bit 0 of x.
        way: the way to multiply the factors.
    """

    grad: Tensor
    columns: Tensor
    neurons: int
    inputs: int
    zero: float
    way: Way = field(default_factory=InFloat32)

    def entries(self, positions: Tensor) -> Tensor:
        """Returns the gradient at `positions`, float32. Positions are sorted int64 indices into the flattened gradient."""
        values = np.float32(self.zero), np.float32(1)
        return _entries(weight_gradient.entries_of_bits, self, self.columns, positions, *values)

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 [neurons, inputs]."""
        grad, width = by_neuron(self.grad, self.neurons), up_to(self.inputs, LANES)
        whole, samples = torch.empty(len(grad), width), grad.shape[1]
        for begin in range(0, samples, self.way.most):
            end = min(begin + self.way.most, samples)
            product = self.way.by_bits(self.columns[:, begin // 8 : end // 8].contiguous(), end - begin, width, self.zero)
            part = torch.empty_like(whole) if begin else whole
            _multiply(product, grad[:, begin:end], part)
            if begin:
                whole += part
        return whole[: self.neurons, : self.inputs]


@dataclass(frozen=True)
class PixelFactors:
    """The weight gradient gradᵀ · x [neurons, inputs] of a layer on x = pixels / 255, stored as its two factors.

    Args:
        grad: the gradient at the layer's sums, float32 [rows, width], 0 in columns that belong to no neuron.
        pixels: uint8 [rows, inputs].
        way: the way to multiply the factors.
    """

    grad: Tensor
    pixels: Tensor
    neurons: int
    way: Way = field(default_factory=InFloat32)

    @property
    def inputs(self) -> int:
        """The number of inputs of each neuron."""
        return self.pixels.shape[1]

    def entries(self, positions: Tensor) -> Tensor:
        """Returns the gradient at `positions`, float32. Positions are sorted int64 indices into the flattened gradient."""
        return _entries(weight_gradient.entries_of_pixels, self, transposed(self.pixels), positions).div_(255)

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 [neurons, inputs]."""
        return self.way.by_pixels(self.grad, self.pixels, self.neurons)


def _multiply(product: Product, numbers: Tensor, out: Tensor) -> None:
    """Computes all rows of `out` by a product with `numbers`; torch's threads share the rows."""
    if product.shares_rows:
        share_out(lambda begin, end: product.rows(numbers, begin, end, out), len(out))
    else:
        product.rows(numbers, 0, len(out), out)


def _entries(
    kernel: Callable, factors: BitFactors | PixelFactors, columns: Tensor, positions: Tensor, *values: np.float32
) -> Tensor:
    """Returns the entries of a gradient at sorted flat positions, float32. `kernel` sums each entry over the rows of the batch.

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
