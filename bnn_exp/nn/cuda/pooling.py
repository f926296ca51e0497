"""Triton's kernels for max-pooling; the definitions are in `bnn_exp.nn.pooling`.

A program computes POSITIONS windows, the positions of the results in all images, and COLUMNS channels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.nn.pooling import pooled_shape

TILE = 2048  # windows · channels of a program


@triton.jit
def _places(
    count,
    height,
    width,
    out_height,
    out_width,
    channels,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Returns the offsets of the windows in the results, the offsets of their first elements in the images, and a mask."""
    p, n = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column, row, image = p % out_width, p // out_width % out_height, p // (out_width * out_height)
    first = (image.to(tl.int64) * height + row * SIZE) * width + column * SIZE
    there = (p < count)[:, None] & (n < channels)[None, :]
    return p[:, None].to(tl.int64) * channels + n[None, :], first[:, None] * channels + n[None, :], there


@triton.jit
def pool_kernel(
    x,
    count,
    height,
    width,
    out_height,
    out_width,
    channels,
    out,
    places,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Computes the largest numbers of `count` windows, and their places."""
    at, first, there = _places(count, height, width, out_height, out_width, channels, SIZE, POSITIONS, COLUMNS)
    largest = tl.load(x + first, there, 0.0).to(tl.float32)
    place = tl.zeros((POSITIONS, COLUMNS), tl.int32)
    for i in tl.static_range(1, SIZE * SIZE):
        other = tl.load(x + first + (i // SIZE * width + i % SIZE) * channels, there, 0.0).to(tl.float32)
        greater = (other > largest) | ((other != other) & (largest == largest))  # NaN is the largest, as in torch
        largest, place = tl.where(greater, other, largest), tl.where(greater, i, place)
    tl.store(out + at, largest.to(out.dtype.element_ty), there)
    tl.store(places + at, place.to(tl.uint8), there)


@triton.jit
def gradient_kernel(
    grad,
    places,
    count,
    height,
    width,
    out_height,
    out_width,
    channels,
    out,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Stores the gradients of `count` windows at the places of their largest numbers, and 0 at the other places."""
    at, first, there = _places(count, height, width, out_height, out_width, channels, SIZE, POSITIONS, COLUMNS)
    g, place = tl.load(grad + at, there, 0.0), tl.load(places + at, there, 0).to(tl.int32)
    for i in tl.static_range(SIZE * SIZE):
        found = tl.where(place == i, g, 0.0).to(out.dtype.element_ty)
        tl.store(out + first + (i // SIZE * width + i % SIZE) * channels, found, there)


def pooled(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    shape = pooled_shape(x, size)
    out, places = x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)
    given, grid = _given(shape, x.shape[1], x.shape[2])
    pool_kernel[grid](x, *given, out, places, SIZE=size, **_tile(shape))
    return out, places


def pooled_gradient(grad: Tensor, places: Tensor, size: int, height: int, width: int) -> Tensor:
    whole = height % size == width % size == 0  # otherwise no window holds the last rows or columns
    out = (torch.empty if whole else torch.zeros)(len(grad), height, width, grad.shape[3], dtype=grad.dtype, device=grad.device)
    given, grid = _given(grad.shape, height, width)
    gradient_kernel[grid](grad, places, *given, out, SIZE=size, **_tile(grad.shape))
    return out


def _tile(shape: tuple[int, ...]) -> dict[str, Any]:
    columns = min(triton.next_power_of_2(shape[3]), 64)
    return {"POSITIONS": TILE // columns, "COLUMNS": columns}


def _given(shape: tuple[int, ...], height: int, width: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Returns the sizes that a kernel takes, and the grid, for results of `shape`."""
    batch, out_height, out_width, channels = shape
    count, tile = batch * out_height * out_width, _tile(shape)
    grid = triton.cdiv(count, tile["POSITIONS"]), triton.cdiv(channels, tile["COLUMNS"])
    return (count, height, width, out_height, out_width, channels), grid
