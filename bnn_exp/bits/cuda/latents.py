"""Triton's kernels of `bnn_exp.bits.latents`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.bits.cuda.flips import BLOCK, EIGHTHS, tile, write

SCALARS = ["threshold", "flips"]  # addresses of scalars, which need no alignment


@triton.jit
def _above(x, count, threshold):
    """Returns the bits 1[x > threshold] of this program's tile, int32 [EIGHTHS, 8], 0 beyond the last, and a mask."""
    there = tile() < count
    return ((tl.load(x + tile(), there, 0.0) > tl.load(threshold)) & there).to(tl.int32), there


@triton.jit(do_not_specialize_on_alignment=SCALARS)
def bits_above_kernel(x, count, threshold, bits):
    """Stores the packed bits of this program's tile, uint8."""
    above, _ = _above(x, count, threshold)
    at = tl.program_id(0) * EIGHTHS + tl.arange(0, EIGHTHS)
    tl.store(bits + at, tl.sum(above << tl.arange(0, 8)[None, :], 1).to(tl.uint8), at < tl.cdiv(count, 8))


@triton.jit(do_not_specialize_on_alignment=SCALARS)
def follow_kernel(x, count, threshold, bits, flips):
    """Updates the packed bits of this program's tile, and adds the number of flips to `flips`."""
    above, there = _above(x, count, threshold)
    before = (tl.load(bits + tile() // 8, there, 0).to(tl.int32) >> (tile() % 8)) & 1
    write(bits, (above != before) & there, flips, PACKED=True)


def bits_above(x: Tensor, threshold: Tensor) -> Tensor:
    """Returns the packed bits 1[x > threshold]; see `bnn_exp.bits.latents.bits_above`."""
    bits = x.new_empty(triton.cdiv(len(x), 8), dtype=torch.uint8)
    bits_above_kernel[(triton.cdiv(len(x), BLOCK.value),)](x, len(x), threshold, bits)
    return bits


def follow(x: Tensor, threshold: Tensor, bits: Tensor, flips: Tensor) -> None:
    """Updates packed bits and counts their flips; see `bnn_exp.bits.latents.follow`."""
    follow_kernel[(triton.cdiv(len(x), BLOCK.value),)](x, len(x), threshold, bits, flips)
