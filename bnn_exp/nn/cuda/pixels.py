"""Triton's kernel that standardizes pixels; the definition is in `bnn_exp.models.pixels`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024  # numbers of one image that a program computes


@triton.jit
def standardize_kernel(pixels, mean, std, channels, space, out, TILE: tl.constexpr):
    """Computes TILE numbers of one image in their order in `out`, [batch, space, channels].

    `pixels` is [batch, channels, space]. 255 · mean is rounded before the difference: a compiler that fuses 256 · mean − mean
    rounds the same number once, and cannot fuse the difference from the pixel too.
    """
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    there, image = at < channels * space, tl.program_id(0).to(tl.int64) * channels * space
    place, channel = at // channels, at % channels
    x = tl.load(pixels + image + channel * space + place, there, 0).to(tl.float32)
    center, spread = tl.load(mean + channel, there, 0.0), tl.load(std + channel, there, 1.0)
    y = tl.div_rn(x - (256 * center - center), 255 * spread)
    tl.store(out + image + at, y.to(out.dtype.element_ty), there)


def standardize_pixels(pixels: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns (pixels − 255 · mean) / (255 · std) as `dtype`, channels-last, see `bnn_exp.models.pixels`."""
    channels, space = pixels.shape[1], pixels.shape[2] * pixels.shape[3]
    out = torch.empty_like(pixels, dtype=dtype, memory_format=torch.channels_last)
    grid = len(pixels), triton.cdiv(channels * space, TILE)
    standardize_kernel[grid](pixels, mean, std, channels, space, out, TILE=TILE)
    return out
