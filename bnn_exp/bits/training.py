"""A layer of bits in training on a CPU: its sums and its gradients from packed bits, by the kernels of `bnn_exp.bits`.

`x`, `v` are float32 that hold the values of bits, 1 and `zero`, which is 0 or −1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import backward, cpu
from bnn_exp.bits.backward import WIDTH
from bnn_exp.bits.cpu import share
from bnn_exp.bits.reference import to_tiles

_LOOKS_UP = torch.backends.cpu.get_cpu_capability() == "AVX512"  # permutes the 16 float32 of a register
_WORTH_IT = 64  # rows, from which on packing the weights costs less than the look-up saves (1024² weights)
_THREAD_ROWS = 256  # that a thread must have, to be worth its waking
_SUMMED_ROWS = 512  # at a time: their sums (2 MiB for 1024 outputs) are scaled while they are in the cache


def bit_rows(x: Tensor) -> Tensor:
    """Which of float32 [rows, inputs] are > 0, eight to a byte: uint8 [rows, bytes]."""
    rows, inputs = x.shape
    x = (x if inputs % WIDTH == 0 else F.pad(x, (0, -inputs % WIDTH))).detach().contiguous()
    packed = torch.empty(rows, x.shape[1] // 8, dtype=torch.uint8)
    backward.pack_rows(x.data_ptr(), x.numel(), packed.data_ptr())
    return packed


def bit_sums(x: Tensor, v: Tensor, zero: float) -> Tensor:
    """x Vᵀ, float32 [rows, outputs], for x [rows, inputs] and v [outputs, inputs]: exact integers, by counting bits."""
    bits, tiles, outputs = bit_rows(x), to_tiles(bit_rows(v)), len(v)
    y, of_ones = torch.empty(len(x), outputs), zero * v.sum(1)
    for sums, counted in zip(y.split(_SUMMED_ROWS), bits.split(_SUMMED_ROWS), strict=True):
        sums.copy_(cpu.bit_sums(counted, tiles, outputs, int(zero)))
        if zero:  # Σ x·v of x = 2b − 1 is 2·Σ b·v − Σ v
            sums.mul_(2).add_(of_ones)
    return y


def bit_columns(x: Tensor) -> Tensor:
    """Which of float32 [rows, inputs] are > 0, along the rows, eight to a byte: uint8 [inputs, bytes], filled to 16 rows."""
    rows, inputs = x.shape
    packed = torch.zeros(-(-rows // WIDTH) * 2, inputs, dtype=torch.uint8)
    backward.pack_columns(x.detach().contiguous().numpy(), rows, inputs, packed.numpy())
    return packed.t().contiguous()


def pixel_columns(x: Tensor) -> Tensor:
    """Pixels uint8 [rows, inputs] → [inputs, rows], filled to 16 rows."""
    rows, inputs = x.shape
    columns = torch.zeros(inputs, -(-rows // WIDTH) * WIDTH, dtype=torch.uint8)
    columns[:, :rows] = x.t()
    return columns


@dataclass(frozen=True)
class BitFactors:
    """The gradient errorsᵀ · x of weights [neurons, inputs] by its factors.

    Args:
        errors: float32 [rows, neurons].
        columns: `bit_columns` of x, whose values are `zero` and 1.
    """

    errors: Tensor
    columns: Tensor
    zero: float

    def entries(self, positions: Tensor) -> Tensor:
        """The gradient at flat positions, int64, sorted: float32, as many; each a sum over the rows in fp32."""

        def kernel(errors, row, rows, neurons, x, column, starts, inputs, out):
            backward.entries_of_bits(
                errors, row, rows, neurons, x, column, starts, inputs, np.float32(self.zero), np.float32(1), out
            )

        return _entries(kernel, self.errors, self.columns, positions)


@dataclass(frozen=True)
class PixelFactors:
    """As BitFactors for x = pixels / 255; `columns` are those of `pixel_columns`."""

    errors: Tensor
    columns: Tensor

    def entries(self, positions: Tensor) -> Tensor:
        """As those of BitFactors."""
        return _entries(backward.entries_of_pixels, self.errors, self.columns, positions).div_(255)


def _entries(kernel: Callable, errors: Tensor, columns: Tensor, positions: Tensor) -> Tensor:
    rows, neurons = errors.shape
    errors, out = errors.contiguous(), torch.zeros(len(positions))
    starts = torch.searchsorted(positions, torch.arange(neurons + 1) * len(columns)).numpy()
    inputs, entries = (positions % len(columns)).numpy(), out.numpy()

    def of_tiles(first: int, last: int) -> None:
        begin, end = first * WIDTH, min(last * WIDTH, neurons)
        start = errors.data_ptr() + errors.itemsize * begin
        kernel(start, neurons, rows, end - begin, columns.data_ptr(), columns.stride(0), starts[begin:], inputs, entries)

    tiles = -(-neurons // WIDTH)
    share(of_tiles, tiles, max(1, min(torch.get_num_threads(), tiles, rows // _THREAD_ROWS)))
    return out


def input_gradient(errors: Tensor, v: Tensor, zero: float) -> Tensor:
    """errors · V, float32 [rows, inputs], for errors [rows, neurons] and V [neurons, inputs] of the values `zero` and 1.

    By look-up where the processor and the sizes allow it, in a third of the time of torch's product on a Zen 4, in fp32 too.
    Torch's bf16 product takes longer, and rounds the errors to 8 bits.
    """
    rows, (neurons, inputs) = len(errors), v.shape
    if not _LOOKS_UP or rows < _WORTH_IT or neurons % 32 or inputs % 32:
        return errors @ v
    errors, out = errors.contiguous(), torch.empty(rows, inputs)
    bits = torch.empty(neurons // 8, inputs, dtype=torch.uint8)
    backward.pack_columns(v.detach().contiguous().numpy(), neurons, inputs, bits.numpy())
    words = bits.view(-1, 4, inputs).transpose(1, 2).contiguous()
    factors = torch.tensor([[1.0 if nibble >> bit & 1 else zero for nibble in range(16)] for bit in range(4)] + [[1.0] * 16])

    def of_rows(begin: int, end: int) -> None:
        start, to = errors.data_ptr() + 4 * neurons * begin, out.data_ptr() + 4 * inputs * begin
        backward.input_gradient(start, neurons, end - begin, neurons, words.data_ptr(), inputs, factors.data_ptr(), to)

    share(of_rows, rows, max(1, min(torch.get_num_threads(), rows // _THREAD_ROWS)))
    return out
