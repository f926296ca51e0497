"""The products of bits in plain torch: what the kernels are tested against, and what computes where there is no kernel.

Every sum is exact: its terms are integers and it stays below 2²⁴, or 2⁵³ where it could not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 64  # outputs of a tile, computed together


def to_tiles(packed: Tensor) -> Tensor:
    """Packed rows of weights, uint8 [outputs, bytes] → *tiles*, uint8 [⌈outputs/64⌉, bytes, 64]; rows that are not there are 0.

    A tile has the bytes j of its 64 rows side by side, so that one vector takes a step for 64 outputs.
    """
    outputs, columns = packed.shape
    whole = outputs // LANES
    tiles = packed.new_zeros(-(-outputs // LANES), columns, LANES)
    tiles[:whole] = packed[: whole * LANES].view(whole, LANES, columns).transpose(1, 2)
    if outputs % LANES:
        tiles[whole, :, : outputs % LANES] = packed[whole * LANES :].T
    return tiles


def from_tiles(tiles: Tensor, outputs: int) -> Tensor:
    """What `to_tiles` made of packed rows, uint8 [outputs, bytes]."""
    return tiles.transpose(1, 2).flatten(0, 1)[:outputs]


def unpacked(packed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Packed rows, uint8 [rows, bytes] → their bits, 0 and 1, [rows, 8 · bytes], where they lie."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> places & 1).flatten(1).to(dtype)


def ones(packed: Tensor) -> Tensor:
    """How many bits of each packed row are 1: uint8 [rows, bytes] → int64 [rows]."""
    of_byte = unpacked(torch.arange(256, device=packed.device)[:, None].to(torch.uint8), torch.uint8).sum(1, dtype=torch.uint8)
    return torch.cat([of_byte[rows.to(torch.int32)].sum(1) for rows in packed.split(256)])  # 256: to be small in memory


def packed(bits: Tensor) -> Tensor:
    """Bits [rows, columns], columns a multiple of 8, any dtype → uint8 [rows, columns/8], where they lie."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.to(torch.uint8).unflatten(1, (-1, 8)) << places).sum(-1, dtype=torch.uint8)


def planes(pixels: Tensor) -> Tensor:
    """Pixels uint8 [rows, columns] → their bits p as packed rows, uint8 [rows, 8, ⌈columns/8⌉], where they lie."""
    places = torch.arange(8, dtype=torch.uint8, device=pixels.device)
    filled = F.pad(pixels, (0, -pixels.shape[1] % 8))
    bits = filled.unsqueeze(1) >> places[:, None] & 1
    return packed(bits.flatten(0, 1)).unflatten(0, (len(pixels), 8))


def _values(tiles: Tensor, outputs: int, inputs: int, zero: float, one: float, dtype: torch.dtype) -> Tensor:
    """The values of the weights' bits, [outputs, inputs]."""
    return unpacked(from_tiles(tiles, outputs), dtype)[:, :inputs] * (one - zero) + zero


def _sums(x: Tensor, tiles: Tensor, outputs: int, zero: int, peak: int) -> Tensor:
    dtype = torch.float32 if peak * 8 * tiles.shape[1] < 2**24 else torch.float64
    return F.linear(x.to(dtype), _values(tiles, outputs, x.shape[1], zero, 1, dtype)).to(torch.int32)


def steps(sums: Tensor, thresholds: Tensor, flips: Tensor) -> Tensor:
    return packed(sums >= thresholds) ^ flips


def bit_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    return _sums(unpacked(x[:, : tiles.shape[1]]), tiles, outputs, zero, 1)


def pixel_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    return _sums(x, tiles, outputs, zero, 255)


def bit_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, flips: Tensor, zero: int) -> Tensor:
    return steps(bit_sums(x, tiles, len(thresholds), zero), thresholds, flips)


def pixel_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, flips: Tensor, zero: int) -> Tensor:
    return steps(pixel_sums(x, tiles, len(thresholds), zero), thresholds, flips)


def real_product(x: Tensor, tiles: Tensor, outputs: int, zero: float, one: float) -> Tensor:
    return F.linear(x, _values(tiles, outputs, x.shape[1], zero, one, x.dtype))
