"""Triton's kernel that unpacks bits to their values: each program computes whole words of four bytes, without a table."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.bits.cuda.codes import codes

ROWS = tl.constexpr(8)  # a program computes 8 rows, and 128 words of each row
WORDS = tl.constexpr(128)


@triton.jit
def _spread(bits, BITS: tl.constexpr):
    """Returns words with bit j of `bits` in the lowest bit of field j. A word has BITS fields."""
    if BITS == 4:
        spread = (bits * 0x00204081) & 0x01010101
    elif BITS == 2:
        spread = (bits * 0x00008001) & 0x00010001
    else:
        spread = bits
    return spread


@triton.jit(do_not_specialize=["zero", "step"])
def unpack_kernel(packed, row, rows, columns, out, out_rows, words, zero, step, BITS: tl.constexpr):
    """Unpacks the first `columns` bits of packed rows, uint8 [rows, row], to words, int32 [out_rows, words].

    A word holds the values of BITS bits. `zero` is the code of the value of a bit 0, and `zero + step` that of a bit 1. Where
    no bit exists, the code is 0. No field of a word overflows, so one multiplication serves all fields.
    """
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    w = (tl.program_id(1) * WORDS + tl.arange(0, WORDS))[None, :]
    first = w * BITS
    exist = (1 << tl.maximum(tl.minimum(columns - first, BITS), 0)) - 1
    there = (r < rows) & (exist > 0)
    byte = tl.load(packed + r.to(tl.int64) * row + first // 8, there, 0).to(tl.int32)
    bits = (byte >> (first % 8)) & exist
    values = _spread(bits, BITS) * step + _spread(tl.where(there, exist, 0), BITS) * zero
    tl.store(out + r.to(tl.int64) * words + w, values, (r < out_rows) & (w < words))


def values_of_bits(packed: Tensor, columns: int, zero: float, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Returns the values of packed bits; see `bnn_exp.bits.cuda.operations.values_of_bits`."""
    out, bits = packed.new_empty(rows, width, dtype=dtype), 4 // dtype.itemsize
    low, one = codes(dtype, zero)
    words = out.view(torch.int32)
    grid = triton.cdiv(rows, ROWS.value), triton.cdiv(words.shape[1], WORDS.value)
    unpack_kernel[grid](packed, packed.stride(0), len(packed), columns, words, rows, words.shape[1], low, one - low, BITS=bits)
    return out
