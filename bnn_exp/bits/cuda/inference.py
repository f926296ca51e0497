"""The operators of `bnn_exp.bits.operators` on CUDA: the choice between the kernels of `bnn_exp.bits.cuda.inference_kernels`.

A layer of few rows takes one launch, a layer of more rows takes two. The constants of this file are the fastest on an H200.
"""

from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.bits.checks import check_outputs, check_thresholds, sizes
from bnn_exp.bits.cuda import inference_kernels as kernels
from bnn_exp.bits.cuda.values import values_of_bits
from bnn_exp.bits.layout import in_rows
from bnn_exp.bits.reference import LANES

FEW = {"bit": 8, "pixel": 2}  # the most rows that the kernels for few rows take
_MOST_WORDS = 128  # the most words of a row that a program for few rows holds at a time
_PROGRAMS = 256  # fewer programs leave much of a large GPU without work


@dataclass(frozen=True)
class Tile:
    """A block of results that one program of `kernels.many` computes, and how the program is compiled.

    Args:
        bytes: the bytes of packed weights of an output that a pass of its loop reads, at most.
    """

    outputs: int
    rows: int
    bytes: int
    warps: int
    stages: int


TILES = (Tile(128, 128, 32, 4, 3), Tile(64, 64, 64, 4, 3), Tile(64, 32, 64, 4, 3), Tile(64, 16, 128, 4, 3))


def tile_of(outputs: int, rows: int) -> Tile:
    """Returns the largest tile of which enough programs exist to occupy a GPU; else the smallest."""
    return next((t for t in TILES if triton.cdiv(outputs, t.outputs) * triton.cdiv(rows, t.rows) >= _PROGRAMS), TILES[-1])


def bit_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of packed bits x, int32 [batch, outputs]; see `bnn_exp.bits.operators`."""
    return _sums("bit", x, tiles, outputs, zero)


def pixel_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of pixels x, int32 [batch, outputs]; see `bnn_exp.bits.operators`."""
    return _sums("pixel", x, tiles, outputs, zero)


def bit_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of bits x; see `bnn_exp.bits.operators`."""
    return _steps("bit", x, tiles, thresholds, inverted, zero)


def pixel_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of pixels x; see `bnn_exp.bits.operators`."""
    return _steps("pixel", x, tiles, thresholds, inverted, zero)


def scores(
    x: Tensor, tiles: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, factor: int, divisor: float, zero: int, pixels: bool
) -> Tensor:
    """Returns (offset + factor · Σ x·w) / divisor · weight + bias, float32 [batch, outputs]; see `bnn_exp.bits.operators`."""
    check_outputs(len(offset), tiles.shape[0])
    out = x.new_empty(len(x), len(offset), dtype=torch.float32)
    constants = offset, weight, bias, factor, float(divisor)
    return _layer("pixel" if pixels else "bit", x, tiles, zero, out, len(offset), "scores", constants)


def real_product(x: Tensor, tiles: Tensor, outputs: int, zero: float, one: float) -> Tensor:
    """Returns the sums Σ x·w of real numbers x; see `bnn_exp.bits.operators`. One kernel unpacks the weights for torch."""
    inputs, width = x.shape[1], 8 * tiles.shape[1]
    if x.dtype == torch.float64 or zero not in (0, -one):
        return reference.real_product(x, tiles, outputs, zero, one)
    rows = in_rows(tiles).transpose(1, 2).flatten(0, 1)[:outputs]
    sums = F.linear(x, values_of_bits(rows, inputs, zero / one, outputs, width, x.dtype)[:, :inputs])
    return sums if one == 1 else sums * one


def _sums(kind: str, x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    check_outputs(outputs, tiles.shape[0])
    out = x.new_empty(len(x), outputs, dtype=torch.int32)
    return _layer(kind, x, tiles, zero, out, outputs, "sums", (0,))


def _steps(kind: str, x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    check_thresholds(thresholds, inverted, tiles)
    out = x.new_empty(len(x), LANES // 8 * tiles.shape[0])
    constants = thresholds.contiguous(), inverted.contiguous()
    return _layer(kind, x, tiles, zero, out, len(thresholds), "steps", constants)


def _layer(kind: str, x: Tensor, tiles: Tensor, zero: int, out: Tensor, outputs: int, result: str, constants: tuple) -> Tensor:
    """Computes `out` [rows, …] of a layer with `outputs` outputs, and returns `out`.

    Args:
        kind: the kind of numbers in x: "bit" or "pixel".
        result, constants: see `kernels._finish`.
    """
    rows, row, _, columns = sizes(x, tiles, kind)
    weights, count = in_rows(tiles), columns if kind == "bit" else row
    finish = zero, out, out.shape[1], outputs, constants, result
    with torch.cuda.device_of(x):
        if rows > FEW[kind]:
            _many(kind == "pixel", x[:, :count], weights, finish)
        elif rows:
            _few(kind == "pixel", x[:, :count], weights, finish)
    return out


def _few(pixels: bool, x: Tensor, weights: Tensor, finish: tuple) -> None:
    """Computes a layer of few rows of bits or pixels x, uint8, by one launch."""
    (rows, count), row = x.shape, weights.stride(2)
    if x.stride(1) != 1 or x.stride(0) % 4 or x.data_ptr() % 4 or (pixels and count % 4):
        given, x = x, x.new_zeros(rows, count + -count % 4)  # the kernels read words of four bytes
        x[:, :count] = given
    kernel, count = (kernels.few_pixels, triton.cdiv(count, 4)) if pixels else (kernels.few_bits, count)
    words = min(triton.next_power_of_2(triton.cdiv(weights.shape[1], 4)), _MOST_WORDS)
    warps = max(words // 32, 1) if pixels else 4
    grid = (triton.cdiv(finish[3], kernels.OUTPUTS.value),)
    kernel[grid](x, x.stride(0) // 4, count, rows, weights, row // 4, *finish, words, num_warps=warps)


def _many(pixels: bool, x: Tensor, weights: Tensor, finish: tuple) -> None:
    """Computes a layer of many rows of bits or pixels x, uint8, on tensor cores, by two launches."""
    (rows, count), columns, row = x.shape, weights.shape[1], weights.stride(2)
    x = x if x.stride(1) == 1 else x.contiguous()
    planes, totals = x.new_empty(rows, 8, row, dtype=torch.int8), x.new_empty(rows, dtype=torch.int32)
    block = min(triton.next_power_of_2(row), 1024)
    kernels.spread[(rows,)](x, x.stride(0), count, columns, planes, row, totals, pixels, block)
    tile = tile_of(finish[3], rows)
    grid = triton.cdiv(finish[3], tile.outputs), triton.cdiv(rows, tile.rows)
    shape = tile.outputs, tile.rows, gcd(tile.bytes, row)  # a pass of the loop ends where the row ends
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    kernels.many[grid](planes, totals, rows, weights, row, *finish, pixels, *shape, **options)
