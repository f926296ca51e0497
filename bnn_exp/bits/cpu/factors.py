"""The gradient of a layer's weights in training on a CPU, as its two factors (`bnn_exp.bits.factors.Factors`)."""

from collections.abc import Callable, Iterator
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

_INPUTS = 256  # inputs whose pixels become floats at a time, where a gradient is computed in blocks


@dataclass(frozen=True)
class BitFactors:
    """The weight gradient gradᵀ · x [neurons, inputs] of a layer on bits x, stored as its two factors.

    Args:
        grad: the gradient at the layer's sums, float32 [rows, width], 0 in columns that belong to no neuron.
        columns: the bits x, transposed: row k packs input k of all samples (`columns_of`).
        zero: the value of a bit 0 of x.
        way: the way to multiply the factors.
        lean: True if the gradient should be computed in blocks.
    """

    grad: Tensor
    columns: Tensor
    neurons: int
    inputs: int
    zero: float
    way: Way = field(default_factory=InFloat32)
    lean: bool = False

    def entries(self, positions: Tensor) -> Tensor:
        """Returns the gradient at `positions`, float32. Positions are sorted int64 indices into the flattened gradient."""
        values = np.float32(self.zero), np.float32(1)
        return _entries(weight_gradient.entries_of_bits, self, self.columns, positions, *values)

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 [neurons, inputs]."""
        (whole,) = self.blocks(self.neurons)
        return whole

    def blocks(self, neurons: int) -> Iterator[Tensor]:
        """Yields the gradients of `neurons` neurons at a time, float32. `neurons` is a multiple of 16, or all neurons."""
        width, samples, products = up_to(self.inputs, LANES), 8 * self.columns.shape[1], []
        for begin in range(0, samples, self.way.most):
            end = min(begin + self.way.most, samples)
            some = self.columns[:, begin // 8 : end // 8].contiguous()
            products.append((begin, end, self.way.by_bits(some, end - begin, width, self.zero)))
        for first, count in _blocks(self.neurons, neurons):
            grad = by_neuron(self.grad, count, first)
            block = torch.empty(len(grad), width)
            for begin, end, product in products:
                part = torch.empty_like(block) if begin else block
                _multiply(product, grad[:, begin:end], part)
                if begin:
                    block += part
            yield block[:count, : self.inputs]


@dataclass(frozen=True)
class PixelFactors:
    """The weight gradient gradᵀ · x [neurons, inputs] of a layer on x = pixels / 255, stored as its two factors.

    Args:
        grad: the gradient at the layer's sums, float32 [rows, width], 0 in columns that belong to no neuron.
        pixels: uint8 [rows, inputs].
        way: the way to multiply the factors.
        lean: True if the gradient should be computed in blocks.
    """

    grad: Tensor
    pixels: Tensor
    neurons: int
    way: Way = field(default_factory=InFloat32)
    lean: bool = False

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

    def blocks(self, neurons: int) -> Iterator[Tensor]:
        """Yields the gradients of `neurons` neurons at a time, float32. `neurons` is a multiple of 16, or all neurons."""
        for first, count in _blocks(self.neurons, neurons):
            grad = self.grad[:, first:]
            yield torch.cat([self.way.by_pixels(grad, some, count) for some in self.pixels.split(_INPUTS, 1)], 1)


def _blocks(neurons: int, most: int) -> Iterator[tuple[int, int]]:
    """Yields the first neuron and the number of neurons of each block.

    A single neuron at the end joins the block before: torch multiplies a single row by another kernel, which adds up the terms
    in another order.
    """
    first = 0
    while first < neurons:
        count = most if neurons - first - most > 1 else neurons - first
        yield first, count
        first += count


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
