"""A layer of bits in training on a CPU: sums, BatchNorm, activation and gradients, from packed bits, by numba's kernels.

`zero`, 0 or −1, is what a bit 0 stands for, in weights and inputs; 1 stands for 1. Bits of a batch are uint8 [rows, bytes], as
`bnn_exp.bits.pack` puts them. A width is a number of neurons filled to a multiple of 64. How many threads share the work
changes no number: every sum has an order of its own, or is taken by chunks of CHUNK rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.bits import backward, kernels, norms
from bnn_exp.bits.backward import WIDTH
from bnn_exp.bits.cpu import share
from bnn_exp.bits.packing import PackedBits
from bnn_exp.bits.reference import LANES, to_tiles
from bnn_exp.nn.norm import scale_and_shift
from bnn_exp.nn.product import pixel_sums as small_integer_sums

CHUNK = 256  # rows: their errors (1 MiB for 1024 neurons) stay in the cache from one kernel to the next
_LOOKS_UP = torch.backends.cpu.get_cpu_capability() == "AVX512"  # permutes the 16 float32 of a register
_TABLE_ROWS = 1024  # of a batch at a time, so that the look-up tables of four neurons (1 MiB) stay in the cache


def in_chunks(work: Callable[[int, int, int], None], rows: int) -> None:
    """Call work(chunk, begin, end) for every chunk of rows, by as many of torch's threads as there is work for."""

    def of_chunks(first: int, last: int) -> None:
        for chunk in range(first, last):
            work(chunk, chunk * CHUNK, min(rows, (chunk + 1) * CHUNK))

    share_out(of_chunks, -(-rows // CHUNK))


def share_out(work: Callable[[int, int], None], count: int) -> None:
    """Call work(first, last) for parts of range(count), one to each of torch's threads."""
    share(work, count, max(1, min(torch.get_num_threads(), count)))


@dataclass(frozen=True)
class Sums:
    """What a layer's product gives for a batch: the numbers a·z + c, exactly, for z int16 or float32 [rows, width]."""

    z: Tensor
    a: float
    c: Tensor  # float32 [width]

    @property
    def arrays(self) -> tuple[np.ndarray, np.float32, np.ndarray]:
        return self.z.numpy(), np.float32(self.a), self.c.numpy()


def bit_sums(x: Tensor, weights: PackedBits, zero: float) -> Sums:
    """x Vᵀ for the bits of x and weights."""
    tiles = to_tiles(weights.packed)
    groups, columns, _ = tiles.shape
    z = torch.empty(len(x), LANES * groups, dtype=torch.int16)

    def of_rows(_chunk: int, begin: int, end: int) -> None:
        here, to = x.data_ptr() + x.stride(0) * begin, z.data_ptr() + 2 * z.stride(0) * begin
        kernels.bit_shorts(here, x.stride(0), end - begin, tiles.data_ptr(), columns, groups, int(zero), to)

    in_chunks(of_rows, len(x))
    if not zero:
        return Sums(z, 1.0, torch.zeros(LANES * groups))
    ones = np.empty(len(weights.packed), np.int64)
    norms.count_ones(weights.packed.numpy(), ones)
    of_weights = 2 * torch.from_numpy(ones).float() - weights.columns
    return Sums(z, 2.0, filled(-of_weights, z.shape[1]))  # Σ (2b − 1)·v = 2·Σ b·v − Σ v


def pixel_sums(x: Tensor, weights: PackedBits, zero: float) -> Sums:
    """x Vᵀ for x = pixels / 255, uint8 [rows, inputs], as float32: those of `bnn_exp.nn.product.pixel_product`."""
    bits = np.unpackbits(weights.packed.numpy(), axis=1, count=weights.columns, bitorder="little")
    v = torch.from_numpy(bits).view(torch.int8)
    v = F.pad(2 * v - 1 if zero else v, (0, 0, 0, -len(v) % LANES))
    return Sums(small_integer_sums(x, v).div_(255), 1.0, torch.zeros(len(v)))


@dataclass(frozen=True)
class Norm:
    """A BatchNorm in one step, float32 [width] each: y = number · scale + shift, by mean and 1/σ of the batch, or (not `batch`)
    of what stands in its place. In columns that are no neurons every y is −∞."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse: Tensor
    batch: bool

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return self.scale.numpy(), self.shift.numpy()


def moments(sums: Sums) -> tuple[Tensor, Tensor]:
    """Mean and variance (of the population, in double precision at the end) of every column: float32, float64 [width]."""
    z, a, c = sums.arrays
    mean, squares = np.empty(z.shape[1], np.float32), np.empty(z.shape[1], np.float32)

    def of_groups(first: int, last: int) -> None:
        for group in range(first, last):
            norms.moments(z, a, c, LANES * group, LANES * (group + 1), mean, squares)

    share_out(of_groups, z.shape[1] // LANES)
    return torch.from_numpy(mean), torch.from_numpy(squares).double() / len(z)


def normalization(norm: nn.BatchNorm1d, sums: Sums) -> Norm:
    """What `norm` does with a batch of such sums, in training or not; its running statistics go on."""
    width = sums.z.shape[1]
    if norm.running_mean is not None and not norm.training:
        scale, shift = scale_and_shift(norm)
        mean, inverse = norm.running_mean, (norm.running_var + norm.eps).rsqrt()
        return Norm(filled(scale, width), filled(shift, width, -inf), filled(mean, width), filled(inverse, width), False)
    mean, variance = moments(sums)
    inverse = (variance + norm.eps).rsqrt().float()
    weight, bias = (torch.ones(1), torch.zeros(1)) if norm.weight is None else (norm.weight.detach(), norm.bias.detach())
    scale = inverse * filled(weight.expand(norm.num_features), width)
    shift = filled(bias.expand(norm.num_features), width, -inf).double() - mean.double() * scale.double()
    if norm.running_mean is not None:
        rows, neurons = len(sums.z), slice(norm.num_features)
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean[neurons], norm.momentum)
        norm.running_var.lerp_((variance[neurons] * rows / (rows - 1)).float(), norm.momentum)
    return Norm(scale, shift.float(), mean, inverse, True)


def activations(sums: Sums, norm: Norm) -> Tensor:
    """The bits 1[y ≥ 0], uint8 [rows, width / 8]."""
    bits = torch.empty(len(sums.z), sums.z.shape[1] // 8, dtype=torch.uint8)
    arguments, to = (*sums.arrays, *norm.arrays), bits.numpy()
    in_chunks(lambda _chunk, begin, end: norms.activations(*arguments, begin, end, to), len(bits))
    return bits


def normalized(sums: Sums, norm: Norm) -> Tensor:
    """y, float32 [rows, width]."""
    y = torch.empty(sums.z.shape)
    norms.normalized(*sums.arrays, *norm.arrays, 0, len(y), y.numpy())
    return y


def columns_of(bits: Tensor) -> Tensor:
    """Bits packed along the rows, uint8 [rows, bytes] → along the columns, uint8 [8 · bytes, ⌈rows / 64⌉ · 8], the rest 0."""
    by_byte = transposed(bits)
    columns = torch.empty(8 * bits.shape[1], by_byte.shape[1] // 8, dtype=torch.uint8)
    given, out = by_byte.numpy(), columns.numpy()
    share_out(lambda first, last: norms.transpose_bits(given[first:last], out[8 * first : 8 * last]), len(given))
    return columns


def transposed(x: Tensor) -> Tensor:
    """uint8 [rows, columns] → [columns, ⌈rows / 64⌉ · 64], filled with 0."""
    rows, columns = x.shape
    out = torch.empty(columns, -(-rows // LANES) * LANES, dtype=torch.uint8)
    out[:, rows:] = 0
    given, to = x.contiguous().numpy(), out.numpy()
    tiles = -(-columns // WIDTH)
    share_out(lambda first, last: norms.transpose(given, WIDTH * first, min(WIDTH * last, columns), to), tiles)
    return out


def filled(x: Tensor, width: int, value: float = 0.0) -> Tensor:
    """x with its last dimension filled to `width`."""
    return F.pad(x, (0, width - x.shape[-1]), value=value)


@dataclass(frozen=True)
class Totals:
    """Of errors at the arguments y, those outside of the window being 0 already: Σ error and Σ error · (number − mean) of
    every column, float64 [width]."""

    errors: Tensor
    products: Tensor


class Gate:
    """Where errors pass an activation: |y| ≤ `window`. It takes them chunk by chunk, in any order."""

    def __init__(self, sums: Sums, norm: Norm, window: float):
        chunks, width = -(-len(sums.z) // CHUNK), sums.z.shape[1]
        self.partial = np.empty((2, chunks, width), np.float32)
        self.arguments = *sums.arrays, *norm.arrays, norm.mean.numpy(), np.float32(window)

    def pass_on(self, errors: np.ndarray, chunk: int, begin: int, end: int) -> None:
        """Set the errors of a chunk, float32 [rows, width], to 0 where they don't pass."""
        norms.pass_on(errors, *self.arguments, begin, end, *self.partial[:, chunk])

    def all(self, errors: Tensor) -> None:
        """The same of all errors."""
        here = errors.numpy()
        in_chunks(lambda *chunk: self.pass_on(here, *chunk), len(here))

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
        norms.center(errors, *self.arguments, begin, end)

    def all(self, errors: Tensor) -> None:
        """The same of all errors."""
        here = errors.numpy()
        in_chunks(lambda _chunk, begin, end: self.rows(here, begin, end), len(here))


class ToInputs:
    """errors · V for the bits of weights: float32 [rows, width], a width of the inputs.

    By look-up where the processor allows it, in a third of the time of torch's product on a Zen 4, in fp32 too. Torch's bf16
    product takes longer, and rounds the errors to 8 bits.
    """

    def __init__(self, weights: PackedBits, width: int, zero: float):
        self.width, self.zero, self.weights = width, zero, weights
        self.neurons = -(-len(weights.packed) // 32) * 32
        if _LOOKS_UP:
            self.words = words_of(columns_of(weights.packed), width)
            self.factors = factors_of(zero)
        else:
            v = weights.unpack()
            self.v = filled(v * (1 - zero) + zero, width)

    def rows(self, errors: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Rows `begin` to `end` of it, from those of errors float32 [rows, width]."""
        if not _LOOKS_UP:
            torch.mm(errors[begin:end, : len(self.v)], self.v, out=out[begin:end])
            return
        start, to = (t.data_ptr() + 4 * t.stride(0) * begin for t in (errors, out))
        sizes = errors.stride(0), end - begin, self.neurons
        backward.input_gradient(start, *sizes, self.words.data_ptr(), self.width, self.factors.data_ptr(), to)


def go_back(errors: Tensor, center: Centering, to_inputs: ToInputs, gate: Gate) -> Tensor:
    """Errors at a layer's y become those at its sums, in place. Gives those at the y of the layer before, float32."""
    below = torch.empty(len(errors), to_inputs.width)
    here, there = errors.numpy(), below.numpy()

    def of_chunk(chunk: int, begin: int, end: int) -> None:
        center.rows(here, begin, end)
        to_inputs.rows(errors, begin, end, below)
        gate.pass_on(there, chunk, begin, end)

    if _LOOKS_UP:
        in_chunks(of_chunk, len(errors))
    else:  # torch shares out a product by itself
        center.all(errors)
        to_inputs.rows(errors, 0, len(errors), below)
        gate.all(below)
    return below


def words_of(columns: Tensor, width: int) -> Tensor:
    """Bits along columns, uint8 [inputs, bytes], as `backward.input_gradient` reads them: int32 [bytes / 4, width]."""
    return F.pad(columns.view(torch.int32).t(), (0, width - len(columns))).contiguous()


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
            backward.entries_of_bits(errors, row, rows, neurons, x, column, starts, inputs, *values, out)

        return _entries(kernel, self, self.columns, positions)

    def whole(self) -> Tensor:
        """The gradient, float32 [neurons, inputs]."""
        rows, width = len(self.errors), -(-self.inputs // LANES) * LANES
        neurons = -(-self.neurons // WIDTH) * WIDTH
        if not _LOOKS_UP:
            x = np.unpackbits(self.columns.numpy(), axis=1, count=rows, bitorder="little")[: self.inputs]
            return self.errors[:, : self.neurons].t() @ (torch.from_numpy(x).float() * (1 - self.zero) + self.zero).t()
        errors = torch.zeros(neurons, 8 * self.columns.shape[1])
        errors[:, :rows] = self.errors[:, :neurons].t()
        words, factors = words_of(self.columns, width), factors_of(self.zero)
        gradient, part = torch.zeros(neurons, width), torch.empty(neurons, width)
        for begin in range(0, errors.shape[1], _TABLE_ROWS):
            size = min(_TABLE_ROWS, errors.shape[1] - begin)

            def of_neurons(first: int, last: int, begin: int = begin, size: int = size) -> None:
                start, to = errors.data_ptr() + 4 * (errors.stride(0) * first + begin), part.data_ptr() + 4 * width * first
                here = words.data_ptr() + 4 * width * (begin // 32)
                backward.input_gradient(start, errors.stride(0), last - first, size, here, width, factors.data_ptr(), to)

            share_out(of_neurons, neurons)
            gradient += part
        return gradient[: self.neurons, : self.inputs]


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
        return _entries(backward.entries_of_pixels, self, transposed(self.pixels), positions).div_(255)

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
