"""Triton's kernel for the values of the bits of a layer; the definition is in `bnn_exp.nn.values`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.nn import values

TILE = 1024  # weights of a tile


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
