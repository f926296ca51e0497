"""The codes of the values −1, 0 and 1 in each dtype: the bytes of these numbers, read as an integer.

Kernels store codes. So one kernel serves every dtype, and Triton compiles it also for a card without fp8 (compute capability
below 8.9).
"""

import torch

_ONE = {torch.float8_e4m3fn: 0x38, torch.float16: 0x3C00, torch.bfloat16: 0x3F80, torch.float32: 0x3F800000}
INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # integers of 1, 2 and 4 bytes


def codes(dtype: torch.dtype, zero: float) -> tuple[int, int]:
    """Returns the codes of two numbers in this dtype, as signed integers of 32 bits: of `zero` (0 or −1), and of 1."""
    one = _ONE[dtype]
    return _signed(one | 1 << (8 * dtype.itemsize - 1)) if zero else 0, one


def _signed(code: int) -> int:
    return (code + 2**31) % 2**32 - 2**31
