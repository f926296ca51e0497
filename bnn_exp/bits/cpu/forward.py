"""A layer of bits in training on a CPU: sums, BatchNorm and activation, from packed bits, by numba's kernels.

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

from bnn_exp.bits.cpu import batch_norm, kernels, pixels
from bnn_exp.bits.cpu.backward_kernels import WIDTH
from bnn_exp.bits.cpu.batch_norm import CHUNK
from bnn_exp.bits.cpu.inference import share
from bnn_exp.bits.packing import PackedBits
from bnn_exp.bits.reference import LANES, to_tiles
from bnn_exp.nn.norm import scale_and_shift
from bnn_exp.nn.product import pixel_sums as small_integer_sums


def share_rows(work: Callable[[int, int], None], rows: int) -> None:
    """Call work(begin, end) for parts of range(rows), whole chunks of it, one to each of torch's threads."""
    share_out(lambda first, last: work(first * CHUNK, min(rows, last * CHUNK)), -(-rows // CHUNK))


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

    def of_rows(begin: int, end: int) -> None:
        here, to = x.data_ptr() + x.stride(0) * begin, z.data_ptr() + 2 * z.stride(0) * begin
        kernels.bit_shorts(here, x.stride(0), end - begin, tiles.data_ptr(), columns, groups, int(zero), to)

    share_rows(of_rows, len(x))
    if not zero:
        return Sums(z, 1.0, torch.zeros(LANES * groups))
    ones = np.empty(len(weights.packed), np.int64)
    batch_norm.count_ones(weights.packed.numpy(), ones)
    of_weights = 2 * torch.from_numpy(ones).float() - weights.columns
    return Sums(z, 2.0, filled(-of_weights, z.shape[1]))  # Σ (2b − 1)·v = 2·Σ b·v − Σ v


def pixel_sums(x: Tensor, weights: PackedBits, zero: float) -> Sums:
    """x Vᵀ for x = pixels / 255, uint8 [rows, inputs], as float32: those of `bnn_exp.nn.product.pixel_product`."""
    v = weights.unpack(torch.int8)
    v = F.pad(2 * v - 1 if zero else v, (0, 0, 0, -len(v) % LANES))
    c = torch.zeros(len(v))
    if not pixels.HAS_VNNI:
        return Sums(small_integer_sums(x, v).div_(255), 1.0, c)
    x = x.contiguous()
    if rest := -x.shape[1] % pixels.FOUR:
        x, v = F.pad(x, (0, rest)), F.pad(v, (0, rest))
    fours = v.view(torch.int32).unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
    z = torch.empty(len(x), len(v))

    def of_rows(begin: int, end: int) -> None:
        here, to = x.data_ptr() + x.shape[1] * begin, z.data_ptr() + 4 * len(v) * begin
        pixels.pixel_numbers(here, x.shape[1], end - begin, fours.data_ptr(), len(fours), to)

    share_rows(of_rows, len(x))
    return Sums(z, 1.0, c)


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
            batch_norm.moments(z, a, c, LANES * group, LANES * (group + 1), mean, squares)

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
    share_rows(lambda begin, end: batch_norm.activations(*arguments, begin, end, to), len(bits))
    return bits


def normalized(sums: Sums, norm: Norm) -> Tensor:
    """y, float32 [rows, width]."""
    y = torch.empty(sums.z.shape)
    batch_norm.normalized(*sums.arrays, *norm.arrays, 0, len(y), y.numpy())
    return y


def columns_of(bits: Tensor) -> Tensor:
    """Bits packed along the rows, uint8 [rows, bytes] → along the columns, uint8 [8 · bytes, ⌈rows / 64⌉ · 8], the rest 0."""
    by_byte = transposed(bits)
    columns = torch.empty(8 * bits.shape[1], by_byte.shape[1] // 8, dtype=torch.uint8)
    given, out = by_byte.numpy(), columns.numpy()
    share_out(lambda first, last: batch_norm.transpose_bits(given[first:last], out[8 * first : 8 * last]), len(given))
    return columns


def transposed(x: Tensor) -> Tensor:
    """uint8 [rows, columns] → [columns, ⌈rows / 64⌉ · 64], filled with 0."""
    rows, columns = x.shape
    out = torch.empty(columns, up_to(rows, LANES), dtype=torch.uint8)
    out[:, rows:] = 0
    given, to = x.contiguous().numpy(), out.numpy()
    tiles = -(-columns // WIDTH)
    share_out(lambda first, last: batch_norm.turn_bytes(given, WIDTH * first, min(WIDTH * last, columns), to), tiles)
    return out


def up_to(count: int, multiple: int) -> int:
    """The next multiple from `count` on."""
    return -(-count // multiple) * multiple


def filled(x: Tensor, width: int, value: float = 0.0) -> Tensor:
    """x with its last dimension filled to `width`."""
    return F.pad(x, (0, width - x.shape[-1]), value=value)
