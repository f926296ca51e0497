"""Triton's kernels for the operands of a layer; the definitions are in `bnn_exp.nn.values`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.nn import values

TILE = 1024  # weights of a tile
PIXELS = 2048  # pixels that a program converts


@triton.jit
def above_kernel(
    weights,
    threshold,
    inputs,
    space,
    low,
    high,
    out,
    LATENT: tl.constexpr,
    INPUTS: tl.constexpr,
    SPACE: tl.constexpr,
):
    """Computes the values of INPUTS inputs of one output, from [outputs, inputs, space] to [outputs, space, inputs].

    `threshold` is the address of a scalar; without LATENT it is not read. SPACE is the next power of two of `space`.
    """
    o = tl.program_id(0).to(tl.int64) * inputs * space
    i, s = (tl.program_id(1) * INPUTS + tl.arange(0, INPUTS))[None, :], tl.arange(0, SPACE)[:, None]
    there = (i < inputs) & (s < space)
    w = tl.load(weights + o + i * space + s, there, 0.0)
    limit = 0.5
    if LATENT:
        limit = tl.load(threshold)
    tl.store(out + o + s * inputs + i, tl.where(w > limit, high, low).to(out.dtype.element_ty), there)


def above(weights: Tensor, threshold: Tensor | None, low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Returns `high` where weights > threshold, else `low`, see `bnn_exp.nn.values`."""
    out, outputs = values.empty(weights, dtype), len(weights) if weights.dim() > 1 else 1
    space = weights[0, 0].numel() if weights.dim() == 4 else 1  # only kernels of convolutions change their order in memory
    inputs = weights.numel() // (outputs * space)
    padded = triton.next_power_of_2(space)
    some = min(triton.next_power_of_2(inputs), max(TILE // padded, 1))
    size = {"LATENT": threshold is not None, "INPUTS": some, "SPACE": padded}
    above_kernel[(outputs, triton.cdiv(inputs, some))](weights, threshold, inputs, space, low, high, out, **size)
    return out


@triton.jit
def pixels_kernel(pixels, row, inputs, width, count, out, WHOLE: tl.constexpr, PIXELS: tl.constexpr):
    """Converts PIXELS pixels to numbers, [count / width, width]. A row of pixels takes `row` bytes.

    WHOLE is True if the pixels lie in memory as the numbers do. Then a thread reads several at once.
    """
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    place, there = at, at < count
    if not WHOLE:
        place, there = (at // width).to(tl.int64) * row + at % width, there & (at % width < inputs)
    tl.store(out + at, tl.load(pixels + place, there, 0).to(tl.float32).to(out.dtype.element_ty), at < count)


def numbers_of_pixels(pixels: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Returns pixels as numbers, see `bnn_exp.nn.values`."""
    pixels = pixels if pixels.stride(1) == 1 else pixels.contiguous()
    out, row = pixels.new_empty(len(pixels), width, dtype=dtype), pixels.stride(0)
    whole, grid = row == width == pixels.shape[1], (triton.cdiv(out.numel(), PIXELS),)
    pixels_kernel[grid](pixels, row, pixels.shape[1], width, out.numel(), out, WHOLE=whole, PIXELS=PIXELS)
    return out
