"""The codes of the values −1, 0 and 1 in each dtype. With them, kernels write values as integers, in every dtype alike.

A card older than compute capability 8.9 has no fp8 numbers: its kernels write the bytes, which no instruction reads there.
"""

import torch

_ONE = {torch.float8_e4m3fn: 0x38, torch.float16: 0x3C00, torch.bfloat16: 0x3F80, torch.float32: 0x3F800000}
INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # the integers of as many bytes as a number


def codes(dtype: torch.dtype, zero: float) -> tuple[int, int]:
    """Returns the codes of the numbers `zero`, 0 or −1, and 1 in this dtype, as signed integers of 32 bits."""
    one = _ONE[dtype]
    return _signed(one | 1 << (8 * dtype.itemsize - 1)) if zero else 0, one


def _signed(code: int) -> int:
    return (code + 2**31) % 2**32 - 2**31
