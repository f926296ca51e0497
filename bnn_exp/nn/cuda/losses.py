"""Triton's kernels for the losses and the number of right answers; the definitions are in `bnn_exp.training.losses`.

A program computes a block of ROWS samples. CLASSES is the next power of two of the number of classes.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _of_block(logits, labels, rows, classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """Returns the logits of this program's block, −∞ beyond the last class, and a mask of the right classes.

    Returns also the offsets of the logits, a mask of the logits that exist, and the numbers of the samples.
    """
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, CLASSES)
    at, there = r[:, None] * classes + c[None, :], (r < rows)[:, None] & (c < classes)[None, :]
    z = tl.load(logits + at, there, 0.0).to(tl.float32)
    z = tl.where((c < classes)[None, :], z, -float("inf"))
    return z, c[None, :] == tl.load(labels + r, r < rows, 0)[:, None], at, there, r


@triton.jit
def _short(z, right, there):
    """Returns max(0, 1 − t·z), with t = 1 for the right class and −1 for any other; 0 beyond the mask `there`."""
    return tl.where(there, tl.maximum(1 - tl.where(right, z, -z), 0.0, propagate_nan=tl.PropagateNan.ALL), 0.0)


@triton.jit
def loss_kernel(logits, labels, rows, classes, out, LOSS: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """Computes Σ loss / rows of the block."""
    z, right, _, there, r = _of_block(logits, labels, rows, classes, ROWS, CLASSES)
    if LOSS == "cross_entropy":
        largest = tl.max(z, 1)
        of_sample = largest + tl.log(tl.sum(tl.exp(z - largest[:, None]), 1)) - tl.sum(tl.where(right, z, 0.0), 1)
    else:
        short = _short(z, right, there)
        of_sample = tl.sum(short * short, 1)
    tl.store(out + tl.program_id(0), tl.sum(tl.where(r < rows, of_sample, 0.0), 0) / rows)


@triton.jit
def gradient_kernel(scale, logits, labels, rows, classes, out, LOSS: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """Computes the gradients of the block's logits."""
    z, right, at, there, _ = _of_block(logits, labels, rows, classes, ROWS, CLASSES)
    if LOSS == "cross_entropy":
        e = tl.exp(z - tl.max(z, 1)[:, None])
        slope = e / tl.sum(e, 1)[:, None] - tl.where(right, 1.0, 0.0)
    else:
        slope = 2 * tl.where(right, -1.0, 1.0) * _short(z, right, there)
    tl.store(out + at, (tl.load(scale) * slope / rows).to(out.dtype.element_ty), there)


@triton.jit
def right_kernel(logits, labels, rows, classes, out, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """Counts the samples of the block whose label has the first largest logit."""
    z, right, _, _, r = _of_block(logits, labels, rows, classes, ROWS, CLASSES)
    answer = tl.argmax(z, 1)
    hit = tl.sum(tl.where(right & (tl.arange(0, CLASSES)[None, :] == answer[:, None]), 1, 0), 1)
    tl.store(out + tl.program_id(0), tl.sum(tl.where(r < rows, hit, 0), 0).to(tl.int64))


def loss_in_blocks(logits: Tensor, labels: Tensor, rows: int, loss: str) -> Tensor:
    size, blocks = _size(logits, rows)
    out = torch.empty(blocks, device=logits.device)
    loss_kernel[(blocks,)](logits, labels, *logits.shape, out, LOSS=loss, **size)
    return out


def loss_gradient(scale: Tensor, logits: Tensor, labels: Tensor, rows: int, loss: str) -> Tensor:
    size, blocks = _size(logits, rows)
    out = torch.empty_like(logits)
    gradient_kernel[(blocks,)](scale, logits, labels, *logits.shape, out, LOSS=loss, **size)
    return out


def right_in_blocks(logits: Tensor, labels: Tensor, rows: int) -> Tensor:
    size, blocks = _size(logits, rows)
    out = labels.new_empty(blocks)
    right_kernel[(blocks,)](logits, labels, *logits.shape, out, **size)
    return out


def _size(logits: Tensor, rows: int) -> tuple[dict[str, Any], int]:
    """Returns the size of a block of `rows` samples, as arguments of a kernel, and the number of blocks."""
    size = {"ROWS": rows, "CLASSES": triton.next_power_of_2(logits.shape[1]), "num_warps": 8}
    return size, triton.cdiv(len(logits), rows)
