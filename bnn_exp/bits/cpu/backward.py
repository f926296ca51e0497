"""The gradients of a layer of bits in training on a CPU, as `bnn_exp.bits.cpu.forward` computes it, by numba's kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits.cpu import backward_kernels, batch_norm
from bnn_exp.bits.cpu.backward_kernels import WIDTH
from bnn_exp.bits.cpu.batch_norm import CHUNK
from bnn_exp.bits.cpu.forward import Norm, Sums, columns_of, filled, share_out, share_rows, transposed, up_to
from bnn_exp.bits.packing import PackedBits
from bnn_exp.bits.reference import LANES

LOOKS_UP = torch.backends.cpu.get_cpu_capability() == "AVX512"  # permutes the 16 float32 of a register
_CACHED = 2**18  # errors, 1 MiB, that stay in the cache from one kernel to the next
_TABLE_ROWS = 1024  # of a batch at a time, so that the look-up tables of four neurons (1 MiB) stay in the cache


@dataclass(frozen=True)
class Totals:
    """Of errors at the arguments y, those outside of the window being 0 already: Σ error and Σ error · (number − mean) of
    every column, float64 [width]."""

    errors: Tensor
    products: Tensor


class Gate:
    """Where errors pass an activation: |y| ≤ `window`. It takes them by whole chunks of rows, in any order."""

    def __init__(self, sums: Sums, norm: Norm, window: float):
        chunks, width = -(-len(sums.z) // CHUNK), sums.z.shape[1]
        self.partial = np.empty((2, chunks, width), np.float32)
        self.arguments = *sums.arrays, *norm.arrays, norm.mean.numpy(), np.float32(window)

    def pass_on(self, errors: np.ndarray, begin: int, end: int) -> None:
        """Set errors of rows `begin` to `end` of float32 [rows, width] to 0 where they don't pass."""
        batch_norm.pass_on(errors, *self.arguments, begin, end, *self.partial)

    def all(self, errors: Tensor) -> None:
        """The same of all errors."""
        here = errors.numpy()
        share_rows(lambda begin, end: self.pass_on(here, begin, end), len(here))

    @property
    def totals(self) -> Totals:
        return Totals(*torch.from_numpy(self.partial.sum(1, dtype=np.float64)))


class Centering:
    """BatchNorm backwards: errors at y become errors at the numbers (Ioffe & Szegedy 2015, section 3)."""

    def __init__(self, sums: Sums, norm: Norm, totals: Totals):
        factor, rows = norm.scale, len(sums.z)
        slope, offset = torch.zeros_like(factor), torch.zeros_like(factor)
        if norm.batch:  # the errors reach the numbers through mean and variance too
            slope = factor * (totals.products * norm.inverse.double().square() / rows).float()
            offset = factor * (totals.errors / rows).float()
        self.arguments = *sums.arrays, *(vector.numpy() for vector in (norm.mean, factor, slope, offset))

    def rows(self, errors: np.ndarray, begin: int, end: int) -> None:
        """Of rows `begin` to `end` of float32 [rows, width], in place."""
        batch_norm.center(errors, *self.arguments, begin, end)

    def all(self, errors: Tensor) -> None:
        """The same of all errors."""
        here = errors.numpy()
        share_rows(lambda begin, end: self.rows(here, begin, end), len(here))


class ToInputs:
    """errors · V for the bits of weights: float32 [rows, width], a width of the inputs.

    By look-up where the processor allows it, in a third of the time of torch's product on a Zen 4, in fp32 too. Torch's bf16
    product takes longer, and rounds the errors to 8 bits.
    """

    def __init__(self, weights: PackedBits, width: int, zero: float):
        self.width, self.neurons = width, up_to(len(weights.packed), 32)
        if LOOKS_UP:
            self.words = words_of(columns_of(weights.packed)[:, : self.neurons // 8], width)
            self.factors = factors_of(zero)
        else:
            self.v = filled(weights.values(zero), width)

    def rows(self, errors: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Rows `begin` to `end` of it, from those of errors float32 [rows, width]."""
        if not LOOKS_UP:
            torch.mm(errors[begin:end, : len(self.v)], self.v, out=out[begin:end])
            return
        _look_up(errors[:, : self.neurons], self.words, self.factors, out, begin, end)


def _look_up(errors: Tensor, words: Tensor, factors: Tensor, out: Tensor, begin: int, end: int) -> None:
    start, to = (t.data_ptr() + 4 * t.stride(0) * begin for t in (errors, out))
    sizes = errors.stride(0), end - begin, errors.shape[1]
    backward_kernels.input_gradient(start, *sizes, words.data_ptr(), out.shape[1], factors.data_ptr(), to)


def go_back(errors: Tensor, center: Centering, to_inputs: ToInputs, gate: Gate) -> Tensor:
    """Errors at a layer's y become those at its sums, in place. Gives those at the y of the layer before, float32."""
    below = torch.empty(len(errors), to_inputs.width)
    here, there = errors.numpy(), below.numpy()
    step = CHUNK * max(1, _CACHED // (CHUNK * to_inputs.width))

    def of_rows(first: int, last: int) -> None:
        for begin in range(first, last, step):
            end = min(begin + step, last)
            center.rows(here, begin, end)
            to_inputs.rows(errors, begin, end, below)
            gate.pass_on(there, begin, end)

    if LOOKS_UP:
        share_rows(of_rows, len(errors))
    else:  # torch shares out a product by itself
        center.all(errors)
        to_inputs.rows(errors, 0, len(errors), below)
        gate.all(below)
    return below


def words_of(columns: Tensor, width: int) -> Tensor:
    """Bits along columns, uint8 [inputs, bytes], as `backward.input_gradient` reads them: int32 [width / 32, bytes / 4, 32]."""
    words = F.pad(columns.contiguous().view(torch.int32), (0, 0, 0, width - len(columns)))
    return words.view(width // 32, 32, -1).transpose(1, 2).contiguous()


def factors_of(zero: float) -> Tensor:
    """What bit j of a nibble i stands for, and sixteen ones: float32 [5, 16]."""
    return torch.tensor([[1.0 if nibble >> bit & 1 else zero for nibble in range(16)] for bit in range(4)] + [[1.0] * 16])


@dataclass(frozen=True)
class BitFactors:
    """The gradient errorsᵀ · x of weights [neurons, inputs], for bits x, by its factors.

    Args:
        errors: float32 [rows, width], 0 in columns that are no neurons.
        columns: those of x, see `columns_of`.
    """

    errors: Tensor
    columns: Tensor
    neurons: int
    inputs: int
    zero: float

    def entries(self, positions: Tensor) -> Tensor:
        """The gradient at flat positions, int64, sorted: float32, as many; each a sum over the rows in fp32."""

        def kernel(errors, row, rows, neurons, x, column, starts, inputs, out):
            values = np.float32(self.zero), np.float32(1)
            backward_kernels.entries_of_bits(errors, row, rows, neurons, x, column, starts, inputs, *values, out)

        return _entries(kernel, self, self.columns, positions)

    def whole(self) -> Tensor:
        """The gradient, float32 [neurons, inputs]."""
        if not LOOKS_UP:
            return self.errors[:, : self.neurons].t() @ self.values()[:, : len(self.errors)].t()
        errors, width = by_neuron(self.errors, self.neurons), up_to(self.inputs, LANES)
        gradient, part, factors = torch.zeros(len(errors), width), torch.empty(len(errors), width), factors_of(self.zero)
        for begin in range(0, errors.shape[1], _TABLE_ROWS):
            some = errors[:, begin : begin + _TABLE_ROWS]
            words = words_of(self.columns[:, begin // 8 : (begin + _TABLE_ROWS) // 8], width)
            share_out(partial(_look_up, some, words, factors, part), len(errors))
            gradient += part
        return gradient[: self.neurons, : self.inputs]

    def values(self) -> Tensor:
        """xᵀ, float32 [inputs, rows], filled to a multiple of 64."""
        return PackedBits(self.columns, 8 * self.columns.shape[1]).values(self.zero)[: self.inputs]


def by_neuron(errors: Tensor, neurons: int) -> Tensor:
    """Errors [rows, width] → [neurons, rows], float32, filled to multiples of 16 and 64."""
    neurons, rows = up_to(neurons, WIDTH), len(errors)
    turned = torch.empty(neurons, up_to(rows, LANES))
    turned[:, rows:] = 0
    here, to = errors.numpy(), turned.numpy()
    share_out(lambda first, last: batch_norm.turn_floats(here, WIDTH * first, WIDTH * last, to), neurons // WIDTH)
    return turned


@dataclass(frozen=True)
class PixelFactors:
    """As BitFactors for x = pixels / 255, uint8 [rows, inputs]."""

    errors: Tensor
    pixels: Tensor
    neurons: int

    @property
    def inputs(self) -> int:
        return self.pixels.shape[1]

    def entries(self, positions: Tensor) -> Tensor:
        """As those of BitFactors."""
        return _entries(backward_kernels.entries_of_pixels, self, transposed(self.pixels), positions).div_(255)

    def whole(self) -> Tensor:
        """As that of BitFactors."""
        return (self.errors[:, : self.neurons].t() @ self.pixels.float()).div_(255)


def _entries(kernel: Callable, factors: BitFactors | PixelFactors, columns: Tensor, positions: Tensor) -> Tensor:
    errors, neurons, out = factors.errors, factors.neurons, torch.zeros(len(positions))
    starts = torch.searchsorted(positions, torch.arange(neurons + 1) * factors.inputs).numpy()
    inputs, entries = (positions % factors.inputs).numpy(), out.numpy()

    def of_tiles(first: int, last: int) -> None:
        begin, end = first * WIDTH, min(last * WIDTH, neurons)
        start, row = errors.data_ptr() + errors.itemsize * begin, errors.stride(0)
        kernel(start, row, len(errors), end - begin, columns.data_ptr(), columns.stride(0), starts[begin:], inputs, entries)

    share_out(of_tiles, -(-neurons // WIDTH))
    return out
