"""The operators of `bnn_exp.bits.convolutions` on CUDA: the choice of the tiles of `bnn_exp.bits.cuda.convolution_kernels`."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from bnn_exp.bits.cuda import convolution_kernels as kernels
from bnn_exp.bits.layout import in_rows


@dataclass(frozen=True)
class Tile:
    """The block of results that one program of `kernels.convolve` computes, and how the program is compiled.

    Args:
        places: positions before pooling.
        inputs: the inputs that a pass of its loop reads.
    """

    places: int
    outputs: int
    inputs: int
    warps: int
    stages: int


TILES = Tile(128, 128, 128, 4, 3), Tile(128, 64, 64, 4, 4), Tile(64, 64, 128, 4, 4), Tile(16, 32, 256, 4, 4)
_PROGRAMS = 128  # fewer programs leave much of a large GPU without work
_PART = 4096  # a program of `kernels.spread` writes so many numbers of a picture, or a quarter as many weights


def tile_of(places: int, outputs: int) -> Tile:
    """Returns the largest tile that the outputs fill and that gives enough programs to occupy a GPU; else the smallest tile."""
    fitting = (t for t in TILES if t.outputs <= triton.next_power_of_2(outputs))
    found = (t for t in fitting if triton.cdiv(places, t.places) * triton.cdiv(outputs, t.outputs) >= _PROGRAMS)
    return next(found, TILES[-1])


def _inputs(row: int, most: int) -> int:
    """Returns the number of inputs that a pass reads of the `row` inputs in a row of the kernel: a power of two up to `most`.

    Passes read whole multiples of this number. It is the greatest one that makes them read the fewest inputs beyond the row.
    """
    sizes = (2**i for i in range(5, most.bit_length()))
    return min(sizes, key=lambda size: (row + -row % size, -size))


def codes_of_codes(
    x: Tensor, tiles: Tensor, padding: Tensor, size: int, zero: int, bias: Tensor, multiplier: Tensor, levels: int, pool: int
) -> Tensor:
    """Returns the codes of a convolution of codes; see `bnn_exp.bits.convolutions`."""
    return _convolved(x, x.shape[3], tiles, padding, size, len(bias), zero, pool, (bias, multiplier, levels))


def bits_of_codes(
    x: Tensor,
    tiles: Tensor,
    padding: Tensor,
    size: int,
    outputs: int,
    zero: int,
    thresholds: Tensor,
    inverted: Tensor,
    pool: int,
) -> Tensor:
    """Returns the bits of a convolution of codes; see `bnn_exp.bits.convolutions`."""
    constants = thresholds.contiguous(), inverted.contiguous(), thresholds.shape[2]
    return _convolved(
        x, x.shape[3], tiles, padding, size, outputs, zero, pool, constants, steps=True, classes=len(thresholds) > 1
    )


def bits_of_bits(
    x: Tensor,
    tiles: Tensor,
    channels: int,
    size: int,
    outputs: int,
    zero: int,
    thresholds: Tensor,
    inverted: Tensor,
    pool: int,
) -> Tensor:
    """Returns the bits of a convolution of bits; see `bnn_exp.bits.convolutions`. Unused bits of x do not count."""
    constants = thresholds.contiguous(), inverted.contiguous(), thresholds.shape[2]
    return _convolved(x, channels, tiles, None, size, outputs, zero, pool, constants, steps=True, classes=len(thresholds) > 1)


def average_codes(x: Tensor, multiplier: Tensor, levels: int) -> Tensor:
    """Returns the codes of the means over all positions; see `bnn_exp.bits.convolutions`."""
    batch, height, width, channels = x.shape
    out = x.new_empty(batch, 1, 1, channels)
    if out.numel():
        grid = batch, triton.cdiv(channels, 64)
        kernels.average[grid](x.contiguous(), height * width, channels, multiplier, levels, out, PLACES=32, CELLS=64)
    return out


def _convolved(
    x: Tensor,
    channels: int,
    tiles: Tensor,
    padding: Tensor | None,
    size: int,
    outputs: int,
    zero: int,
    pool: int,
    constants: tuple,
    steps: bool = False,
    classes: bool = False,
) -> Tensor:
    """Returns the results of a convolution: codes, or packed bits if `steps` is True.

    Args:
        x: codes, or packed bits if `padding` is None: uint8 [batch, height, width, …].
        constants, steps, classes: see `kernels.convolve`.
    """
    batch, height, width, _ = x.shape
    out = x.new_empty(batch, height // pool, width // pool, -(-outputs // 8) if steps else outputs)
    if not out.numel():
        return out
    codes, rows = padding is not None, in_rows(tiles).transpose(1, 2).flatten(0, 1)[:outputs]
    spots, windows = triton.next_power_of_2(pool * pool), out[..., 0].numel()
    tile = tile_of(windows * spots, outputs)
    cell = 4 if channels <= 4 else channels + -channels % 16
    inputs = _inputs(size * cell, tile.inputs)
    row = size * cell + -size * cell % inputs
    places = batch * (height + size - 1) * (width + size - 1)
    picture = x.new_empty(places * cell + inputs * size, dtype=torch.int8)
    weights = x.new_empty(outputs * size * row, dtype=torch.int8)
    cells = min(triton.next_power_of_2(cell), _PART)
    of_picture, of_weights = triton.cdiv(places, _PART // cells), outputs * triton.cdiv(size * row, _PART // 4)
    kernels.spread[of_picture + of_weights, triton.cdiv(cell, cells)](
        *(x.contiguous(), batch, height, width, channels, x if padding is None else padding.contiguous(), picture),
        *(rows, rows.stride(0), weights, of_picture, codes, zero, size, cell, row, _PART // cells, cells, _PART // 4),
    )
    per_program = max(tile.places // spots, 1)
    kernels.convolve[(triton.cdiv(outputs, tile.outputs) * triton.cdiv(windows, per_program),)](
        *(picture, batch, height, width, channels, weights, rows, rows.stride(0), outputs, out, constants),
        *(codes, zero, steps, classes, size, cell, row, pool, spots, per_program, tile.outputs, inputs),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
