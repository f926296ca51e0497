"""Packed bits, eight in a byte. Bit j of a row is bit j mod 8 (the lowest first) of byte j div 8 of the row.

The rows of a tensor are its first dimension. A vector is one row.
"""

import math

import numpy as np
import torch
from torch import Tensor


def pack(bits: Tensor) -> Tensor:
    """Packs bits [rows, …] or [columns], 0 and 1 in any dtype.

    Returns:
        uint8 [rows, ⌈bits per row / 8⌉] on the CPU. The bits that fill the last byte of a row are 0.
    """
    rows = bits.detach().to("cpu", torch.uint8).reshape(_rows(bits.shape), -1).numpy()
    return torch.from_numpy(np.packbits(rows, axis=1, bitorder="little"))


def unpack(packed: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the bits that `pack` packed, as `dtype` of `shape`, on the device of `packed`.

    Args:
        packed: uint8 [rows, ⌈bits per row / 8⌉].
        shape: the shape of the bits before they were packed.

    Raises:
        ValueError: `packed` is not uint8, or its size does not fit `shape`.
    """
    columns = math.prod(shape) // max(_rows(shape), 1)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (_rows(shape), -(-columns // 8)):
        raise ValueError(f"{packed.dtype} {list(packed.shape)} does not hold packed bits of shape {list(shape)}")
    rows = np.unpackbits(packed.cpu().numpy(), axis=1, count=columns, bitorder="little")
    return torch.from_numpy(rows).reshape(shape).to(packed.device, dtype)


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 1 else 1
