"""Triton's kernels that gather a batch; the definitions are in `bnn_exp.data.dataset`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # row numbers that a program of `rows_kernel` copies; bytes of an image that a program of `gather_kernel` copies


@triton.jit
def rows_kernel(order, begin, out, count, BLOCK: tl.constexpr):
    """Copies `count` row numbers from `order`. The address `begin` holds the place of the first of them."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(order + tl.load(begin) + at, at < count, 0), at < count)


@triton.jit
def gather_kernel(images, labels, rows, size, out, labels_out, BLOCK: tl.constexpr):
    """Copies BLOCK bytes of one image of `size` bytes. The first program of an image also copies the label."""
    place, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, at = tl.load(rows + place), part * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place * size + at, tl.load(images + row * size + at, at < size, 0), at < size)
    tl.store(labels_out + place, tl.load(labels + row), part == 0)


def rows_from(order: Tensor, begin: Tensor, count: int) -> Tensor:
    out = torch.empty(count, dtype=torch.int64, device=order.device)
    rows_kernel[(triton.cdiv(count, BLOCK),)](order, begin, out, count, BLOCK=BLOCK)
    return out


def gathered(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    out, labels_out = images.new_empty(len(rows), *images.shape[1:]), labels.new_empty(len(rows))
    size = images[0].numel()
    gather_kernel[(len(rows), triton.cdiv(size, BLOCK))](images, labels, rows, size, out, labels_out, BLOCK=BLOCK)
    return out, labels_out
