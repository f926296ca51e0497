"""The operators of `bnn_exp.nn.batch_norm` on a GPU, by the kernels of `bnn_exp.nn.cuda.batch_norm_kernels`."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from bnn_exp.nn.cuda import batch_norm_kernels as kernels

TILE = 4096  # elements of a tile
HELD = 8192  # the most elements of a tile that holds all rows of its channels
SPREAD = 64  # programs that share the channels of a short batch, if each then has four channels or more
PARTS = 256  # the most parts of a sum over the rows: one program combines all parts of GROUP channels at once
PROGRAMS = 512  # about the number of programs that a large GPU runs at once; a sum over the rows takes so many
GROUP = 16
WARPS = {"num_warps": 4}  # measured on an H200, as are TILE and HELD


def batch_statistics(z: Tensor, *running: Any) -> tuple[Tensor, Tensor]:
    (rows, channels), (size, per, parts, grid) = z.shape, _in_parts(z)
    partial, vectors = _empty(z, parts, channels), _empty(z, channels)
    kernels.part_moments[grid](z, rows, channels, per, *partial, **size, **WARPS)
    kernels.combined_moments[_groups(channels)](
        *partial, parts, rows, channels, per, *vectors, *running, **_updates(running), **_combining(parts)
    )
    return vectors


def normalize(z: Tensor, *given: Any) -> Tensor:
    *norm, activation, low, high, dtype = given
    size, grid = _tiles(z)
    out = torch.empty_like(z, dtype=dtype)
    kernels.elements[grid](z, *z.shape, *norm, low, high, out, **_kind(norm, activation), **size, **WARPS)
    return out


def normalize_few(z: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    *running, weight, bias, eps, activation, low, high, dtype = given
    size, grid = _all_rows(z)
    out, vectors = torch.empty_like(z, dtype=dtype), _empty(z, z.shape[1])
    norm = *vectors, weight, bias, eps
    kind = _updates(running) | _kind(norm, activation)
    kernels.whole[grid](z, *z.shape, *norm, *running, low, high, out, **kind, **size)
    return out, *vectors


def normalize_gradient(grad: Tensor, z: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    *norm, activation, window = given
    (rows, channels), (size, per, parts, grid), kind = z.shape, _in_parts(z), _kind(norm, activation)
    out, partial, vectors = torch.empty_like(z), _empty(z, parts, channels), _empty(z, channels)
    kernels.part_sums[grid](grad, z, rows, channels, per, *norm, window, *partial, **kind, **size, **WARPS)
    _, variance, *_, eps = norm
    kernels.combined_sums[_groups(channels)](*partial, parts, channels, variance, eps, *vectors, **_combining(parts))
    size, tiles = _tiles(z)
    kernels.element_gradients[tiles](grad, z, rows, channels, *norm, window, *vectors, out, **kind, **size, **WARPS)
    return out, *vectors


def normalize_few_gradient(grad: Tensor, z: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    *norm, activation, window = given
    size, grid = _all_rows(z)
    out, vectors = torch.empty_like(z), _empty(z, z.shape[1])
    kind = _kind(norm, activation)
    kernels.whole_gradient[grid](grad, z, *z.shape, *norm, window, *vectors, out, **kind, **size)
    return out, *vectors


def _updates(running: Sequence[Any]) -> dict[str, bool]:
    """Returns the constant RUNNING of a kernel: True if running statistics exist."""
    return {"RUNNING": running[0] is not None}


def _kind(norm: Sequence[Any], activation: str) -> dict[str, Any]:
    """Returns the constants of a kernel for `norm`, which is mean, variance, weight, bias and eps, and for the activation."""
    return {"AFFINE": norm[2] is not None, "ACTIVATION": activation}


def _tiles(z: Tensor) -> tuple[dict[str, int], tuple[int, int]]:
    """Returns the size of a tile, as arguments of a kernel, and the grid of a kernel that computes one tile in a program."""
    columns = min(triton.next_power_of_2(z.shape[1]), 64)
    rows = TILE // columns
    return {"ROWS": rows, "COLUMNS": columns}, (triton.cdiv(z.shape[0], rows), triton.cdiv(z.shape[1], columns))


def _in_parts(z: Tensor) -> tuple[dict[str, int], int, int, tuple[int, int]]:
    """Returns the size of a tile, the rows of a part (a multiple of a tile's), the number of parts, and the grid."""
    size, (tiles, groups) = _tiles(z)
    tiles_of_part = triton.cdiv(tiles, min(PARTS, max(PROGRAMS // groups, 1)))
    parts = triton.cdiv(tiles, tiles_of_part)
    return size, tiles_of_part * size["ROWS"], parts, (parts, groups)


def _combining(parts: int) -> dict[str, int]:
    return {"PARTS": triton.next_power_of_2(parts), "GROUP": GROUP, **WARPS}


def _groups(channels: int) -> tuple[int]:
    return (triton.cdiv(channels, GROUP),)


def _all_rows(z: Tensor) -> tuple[dict[str, int], tuple[int]]:
    """Returns the size of a tile that holds all rows, as arguments of a kernel, and the grid."""
    rows = triton.next_power_of_2(z.shape[0])
    columns = max(min(triton.next_power_of_2(z.shape[1]) // SPREAD, 32, HELD // rows), 4)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": 8}, (triton.cdiv(z.shape[1], columns),)


def _empty(z: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Returns two empty tensors on the device of z, float32 of `shape`."""
    return z.new_empty(shape, dtype=torch.float32), z.new_empty(shape, dtype=torch.float32)
