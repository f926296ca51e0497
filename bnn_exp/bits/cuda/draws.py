"""Triton's kernels for the numbers of `bnn_exp.bits.philox`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(1024)  # numbers that a program of `uniform_kernel` draws


@triton.jit
def draw_at(key, step, draw, place):
    """Returns the random numbers in [0, 1) of the integers `place`; see `bnn_exp.bits.philox.words`."""
    now = tl.load(step)
    low, high = now.to(tl.int32), (now >> 32).to(tl.int32)
    counter = (place // 4).to(tl.int32)
    a, b, c, d = tl.philox(key.to(tl.int64), counter, low + 0 * counter, high + 0 * counter, draw + 0 * counter)
    even, upper = place % 2 == 0, place % 4 >= 2
    return tl.uint_to_uniform_float(tl.where(upper, tl.where(even, c, d), tl.where(even, a, b)))


@triton.jit(do_not_specialize=["key", "draw"], do_not_specialize_on_alignment=["step"])
def uniform_kernel(out, count, key, step, draw):
    """Stores `count` random numbers in [0, 1), float32, at `out`."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, draw_at(key, step, draw, place), place < count)


def uniform(count: int, key: int, step: Tensor, draw: int) -> Tensor:
    """Returns `count` random numbers in [0, 1), float32 on the device of `step`; see `bnn_exp.bits.philox.words`."""
    out = torch.empty(count, device=step.device)
    uniform_kernel[(triton.cdiv(count, BLOCK.value),)](out, count, key, step, draw)
    return out
