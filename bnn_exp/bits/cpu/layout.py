"""Fills, transposes and rearranges tensors into the layouts that the kernels read."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits.cpu.kernels import transposes
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.bits.reference import LANES


def up_to(count: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is not below `count`."""
    return -(-count // multiple) * multiple


def filled(x: Tensor, width: int, value: float = 0.0) -> Tensor:
    """Returns x with its last dimension extended to `width` by `value`."""
    return F.pad(x, (0, width - x.shape[-1]), value=value)


def transposed(x: Tensor) -> Tensor:
    """Transposes uint8 [rows, columns] to [columns, ⌈rows / 64⌉ · 64]; the fill is 0."""
    rows, columns = x.shape
    out = torch.empty(columns, up_to(rows, LANES), dtype=torch.uint8)
    out[:, rows:] = 0
    source, target = x.contiguous().numpy(), out.numpy()

    def copy(first: int, last: int) -> None:
        transposes.transpose_bytes(source, WIDTH * first, min(WIDTH * last, columns), target)

    share_out(copy, -(-columns // WIDTH))
    return out


def columns_of(bits: Tensor) -> Tensor:
    """Transposes bits, packed along the rows, uint8 [rows, bytes], to uint8 [8 · bytes, ⌈rows / 64⌉ · 8]; the fill is 0."""
    by_byte = transposed(bits)
    columns = torch.empty(8 * bits.shape[1], by_byte.shape[1] // 8, dtype=torch.uint8)
    source, target = by_byte.numpy(), columns.numpy()
    share_out(lambda first, last: transposes.transpose_bits(source[first:last], target[8 * first : 8 * last]), len(source))
    return columns


def by_neuron(grad: Tensor, neurons: int, first: int = 0) -> Tensor:
    """Transposes `neurons` columns of float32 [rows, width], from column `first` on, to float32 [neurons, rows].

    In the result, `neurons` is rounded up to a multiple of 16 and `rows` to a multiple of 64. `width` must be at least `first`
    plus the rounded number of neurons.
    """
    neurons, rows = up_to(neurons, WIDTH), len(grad)
    out = torch.empty(neurons, up_to(rows, LANES))
    out[:, rows:] = 0
    source, target = grad.numpy(), out.numpy()

    def turn(begin: int, end: int) -> None:
        transposes.transpose_floats(source, first, WIDTH * begin, WIDTH * end, target)

    share_out(turn, neurons // WIDTH)
    return out


def words_of(columns: Tensor, width: int) -> Tensor:
    """Rearranges bits, packed along the columns, uint8 [inputs, bytes], for `kernels.input_gradient`.

    Returns int32 [width / 32, bytes / 4, 32], where inputs beyond those of `columns` are 0.
    """
    words = F.pad(columns.contiguous().view(torch.int32), (0, 0, 0, width - len(columns)))
    return words.view(width // 32, 32, -1).transpose(1, 2).contiguous()


@cache
def factors_of(zero: float, *last: float) -> Tensor:
    """Returns the `factors` of a kernel of look-ups, float32 [4 + len(last), 16]. No caller may change them.

    Entry (j, i) of the first four rows is the value of bit j of the nibble i, 1 or `zero`. Each further row repeats a number of
    `last`.
    """
    values = [[1.0 if nibble >> bit & 1 else zero for nibble in range(16)] for bit in range(4)]
    return torch.tensor(values + [[number] * 16 for number in last])
