"""Triton's kernels for codes of activations; the definitions are in `bnn_exp.nn.codes`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.nn.requantize import LEAST_CLIP

TILE = 4096  # elements of a program


@triton.jit
def _per_code(clip, levels, LEAST: tl.constexpr):
    return tl.div_rn(levels.to(tl.float32), tl.maximum(tl.load(clip), LEAST))


@triton.jit
def codes_kernel(y, clip, levels, count, out, LEAST: tl.constexpr, TILE: tl.constexpr):
    """Computes TILE codes. A sum with 1.5 · 2²³ has no fraction: it is rounded to a whole number, a half to the even one."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = at < count
    v = tl.load(y + at, there, 0.0).to(tl.float32) * _per_code(clip, levels, LEAST)
    v = tl.where(v < 0, 0.0, v)
    v = tl.where(v > levels, levels, v)
    tl.store(out + at, (v + 12582912.0 - 12582912.0).to(out.dtype.element_ty), there)


@triton.jit
def gradients_kernel(grad, codes, clip, levels, count, out, cut, LEAST: tl.constexpr, TILE: tl.constexpr):
    """Computes TILE gradients at y, and a part of the gradient at the clip."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = at < count
    g = tl.load(grad + at, there, 0.0).to(tl.float32)
    inside = tl.where(tl.load(codes + at, there, 0.0).to(tl.float32) < levels, g, 0.0)
    per_code = _per_code(clip, levels, LEAST)
    tl.store(out + at, (inside * per_code).to(out.dtype.element_ty), there)
    tl.store(cut + tl.program_id(0), tl.sum(g - inside) * per_code)


def _grid(count: int) -> tuple[int]:
    return (max(1, triton.cdiv(count, TILE)),)  # CUDA refuses a grid of no programs


def codes_of(y: Tensor, clip: Tensor, levels: int) -> Tensor:
    """Returns the codes of y, see `bnn_exp.nn.codes.codes_of`."""
    out, count = torch.empty_like(y), y.numel()
    codes_kernel[_grid(count)](y, clip, levels, count, out, LEAST=LEAST_CLIP, TILE=TILE)
    return out


def codes_gradient(grad: Tensor, codes: Tensor, clip: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Returns the gradients at y and at the clip, see `bnn_exp.nn.codes.codes_gradient`."""
    out, count = torch.empty_like(grad), grad.numel()
    grid = _grid(count)
    cut = grad.new_empty(grid, dtype=torch.float32)
    gradients_kernel[grid](grad, codes, clip, levels, count, out, cut, LEAST=LEAST_CLIP, TILE=TILE)
    return out, cut.sum()
