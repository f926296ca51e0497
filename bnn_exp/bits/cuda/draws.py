"""Triton's kernels for the numbers of `bnn_exp.bits.philox`, drawn alone or together with the flips of a random mask."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.bits.packing import PackedBits

BLOCK = tl.constexpr(1024)  # numbers that a program of `uniform_kernel` draws
UPDATE = tl.constexpr(16)  # a program of `flip_kernel` updates 16 rows, and 16 bytes of each row


@triton.jit
def _draw(key, step, draw, place):
    """Returns the numbers in [0, 1) at these places of a tensor: Philox of the counters (place, step, draw)."""
    now = tl.load(step)
    low, high = now.to(tl.int32), (now >> 32).to(tl.int32)
    word, _, _, _ = tl.philox(key.to(tl.int64), place.to(tl.int32), low + 0 * place, high + 0 * place, draw + 0 * place)
    return tl.uint_to_uniform_float(word)


@triton.jit(do_not_specialize=["key", "draw"])
def uniform_kernel(out, count, key, step, draw):
    """Stores `count` numbers in [0, 1), float32."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, _draw(key, step, draw, place), place < count)


@triton.jit(do_not_specialize=["key", "draw"])
def flip_kernel(packed, row, rows, columns, gradient, stride, delta, key, step, draw, flips):
    """Sets b ← 1[g ≤ 0] where the random number at a weight's place is below δ, and adds the number of flips to `flips`."""
    r = (tl.program_id(0) * UPDATE + tl.arange(0, UPDATE))[:, None, None]
    j = (tl.program_id(1) * UPDATE + tl.arange(0, UPDATE))[None, :, None]
    place = tl.arange(0, 8)[None, None, :]
    k = 8 * j + place
    there, byte_there = (r < rows) & (k < columns), (r < rows) & (j < row)
    bytes_ = tl.load(packed + r.to(tl.int64) * row + j, byte_there, 0).to(tl.int32)
    target = (tl.load(gradient + r.to(tl.int64) * stride + k, there, 0.0) <= 0).to(tl.int32)
    chosen = _draw(key, step, draw, r * columns + k) < tl.load(delta)
    changes = tl.where(there & chosen & (((bytes_ >> place) & 1) != target), 1, 0)
    changed = (bytes_ ^ tl.sum(changes << place, 2, keep_dims=True)).to(tl.uint8)
    tl.store(packed + r.to(tl.int64) * row + j, changed, byte_there)
    tl.atomic_add(flips, tl.sum(tl.sum(tl.sum(changes, 2), 1), 0).to(tl.int64))


def uniform(count: int, key: int, step: Tensor, draw: int) -> Tensor:
    """Returns `count` numbers in [0, 1), float32 on the device of `step`; see `bnn_exp.bits.philox.words`."""
    out = torch.empty(count, device=step.device)
    uniform_kernel[(triton.cdiv(count, BLOCK.value),)](out, count, key, step, draw)
    return out


def flip_at_random(weights: PackedBits, gradient: Tensor, delta: Tensor, key: int, step: Tensor, draw: int) -> Tensor:
    """Applies HyperMask with a random mask, in place; see `bnn_exp.bits.philox.flip_at_random`.

    Args:
        gradient: float32 [neurons, inputs]; each row is contiguous.
        delta: float32 scalar on the device.
    """
    rows, row = weights.packed.shape
    flips = torch.zeros((), dtype=torch.int64, device=step.device)
    grid = triton.cdiv(rows, UPDATE.value), triton.cdiv(row, UPDATE.value)
    stride = gradient.stride(0)
    flip_kernel[grid](weights.packed, row, rows, weights.columns, gradient, stride, delta, key, step, draw, flips)
    return flips
