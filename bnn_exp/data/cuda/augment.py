"""Triton's kernel for changed images; the definition is in `bnn_exp.data.augment`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.bits.cuda.draws import draw_at

TILE = 1024  # pixels of one image that a program computes


@triton.jit
def _integer(high, key, number, draw, row):
    """Returns a random integer from 0 to high − 1 for the images `row`, as `bnn_exp.bits.philox.integers` draws it."""
    return (draw_at(key, number, draw, row) * high).to(tl.int32)


@triton.jit(do_not_specialize=["key", "begin"])
def vary_kernel(
    x,
    number,
    key,
    begin,
    channels,
    height,
    width,
    out,
    FLIP: tl.constexpr,
    SHIFT: tl.constexpr,
    CUTOUT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes TILE pixels of one changed image. Draws are numbered in the order of `varied` in `bnn_exp.data.augment`."""
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    channel, down, across = at // (height * width), at // width % height, at % width
    there = at < channels * height * width
    row = begin + tl.program_id(0) + tl.arange(0, 1)
    y, x_, inside, draw = down, across, there, 0
    mirrored = tl.zeros((1,), tl.int32)
    if FLIP:
        mirrored = _integer(2, key, number, draw, row)
        draw += 1
    if SHIFT > 0:
        y = down + _integer(2 * SHIFT + 1, key, number, draw, row) - SHIFT
        x_ = across + _integer(2 * SHIFT + 1, key, number, draw + 1, row) - SHIFT
        inside = there & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
        draw += 2
    if CUTOUT > 0:
        below = down - (_integer(height, key, number, draw, row) - CUTOUT // 2)
        right = across - (_integer(width, key, number, draw + 1, row) - CUTOUT // 2)
        inside = inside & ((below < 0) | (below >= CUTOUT) | (right < 0) | (right >= CUTOUT))
    x_ = tl.where(mirrored == 1, width - 1 - x_, x_)
    image = tl.program_id(0).to(tl.int64) * channels * height * width
    pixels = tl.load(x + image + (channel * height + y) * width + x_, inside, 0)
    tl.store(out + image + at, pixels, there)


def varied_by_philox(x: Tensor, number: Tensor, key: int, begin: int, rows: int, shift: int, flip: bool, cutout: int) -> Tensor:
    out, (images, channels, height, width) = torch.empty_like(x), x.shape
    grid = images, triton.cdiv(channels * height * width, TILE)
    kind = {"FLIP": flip, "SHIFT": shift, "CUTOUT": cutout, "TILE": TILE}
    vary_kernel[grid](x, number, key, begin, channels, height, width, out, **kind)
    return out
