"""The operations on packed bits in plain torch. Tests compare kernels with these operations; devices without kernels use them.

Every sum of bits or pixels is exact, because its terms are integers. It is computed in float32 if it stays below 2²⁴, else in
float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 64  # outputs of a tile, which a kernel computes together


def to_tiles(packed: Tensor) -> Tensor:
    """Rearranges packed rows of weights, uint8 [outputs, bytes], into *tiles*, uint8 [⌈outputs/64⌉, bytes, 64].

    A tile holds 64 rows, one for each of 64 outputs. The bytes j of the 64 rows stand side by side, so one vector operation
    works on 64 outputs. Missing rows of the last tile are 0.
    """
    outputs, columns = packed.shape
    whole = outputs // LANES
    tiles = packed.new_zeros(-(-outputs // LANES), columns, LANES)
    tiles[:whole] = packed[: whole * LANES].view(whole, LANES, columns).transpose(1, 2)
    if outputs % LANES:
        tiles[whole, :, : outputs % LANES] = packed[whole * LANES :].T
    return tiles


def from_tiles(tiles: Tensor, outputs: int) -> Tensor:
    """Returns the packed rows, uint8 [outputs, bytes], from which `to_tiles` made these tiles."""
    return tiles.transpose(1, 2).flatten(0, 1)[:outputs]


def unpacked(packed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpacks rows, uint8 [rows, bytes], to bits 0 and 1, [rows, 8 · bytes], on the same device."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> places & 1).flatten(1).to(dtype)


def ones(packed: Tensor) -> Tensor:
    """Returns the number of bits that are 1 in each packed row: uint8 [rows, bytes] → int64 [rows]."""
    of_byte = unpacked(torch.arange(256, device=packed.device)[:, None].to(torch.uint8), torch.uint8).sum(1, dtype=torch.uint8)
    parts = packed.split(256)  # few rows at a time use little memory
    return torch.cat([of_byte[rows.to(torch.int32)].sum(1) for rows in parts])


def packed(bits: Tensor) -> Tensor:
    """Packs bits [rows, columns] of any dtype, columns a multiple of 8, to uint8 [rows, columns/8] on the same device."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.to(torch.uint8).unflatten(1, (-1, 8)) << places).sum(-1, dtype=torch.uint8)


def planes(pixels: Tensor) -> Tensor:
    """Splits pixels, uint8 [rows, columns], into bit planes, uint8 [rows, 8, ⌈columns/8⌉] on the same device.

    Plane [r, p] packs bit p of every pixel of row r.
    """
    places = torch.arange(8, dtype=torch.uint8, device=pixels.device)
    filled = F.pad(pixels, (0, -pixels.shape[1] % 8))
    bits = filled.unsqueeze(1) >> places[:, None] & 1
    return packed(bits.flatten(0, 1)).unflatten(0, (len(pixels), 8))


def _values(tiles: Tensor, outputs: int, inputs: int, zero: float, one: float, dtype: torch.dtype) -> Tensor:
    """Returns the values of the weights, [outputs, inputs]: `zero` for a bit 0, `one` for a bit 1."""
    return unpacked(from_tiles(tiles, outputs), dtype)[:, :inputs] * (one - zero) + zero


def _sums(x: Tensor, tiles: Tensor, outputs: int, zero: int, peak: int) -> Tensor:
    dtype = torch.float32 if peak * 8 * tiles.shape[1] < 2**24 else torch.float64
    return F.linear(x.to(dtype), _values(tiles, outputs, x.shape[1], zero, 1, dtype)).to(torch.int32)


def steps(sums: Tensor, thresholds: Tensor, inverted: Tensor) -> Tensor:
    """Returns the packed bits 1[sum ≥ threshold] of sums [rows, outputs], each inverted where a bit of `inverted` is 1."""
    return packed(sums >= thresholds) ^ inverted


def bit_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of packed bits x, int32 [batch, outputs]; see `bnn_exp.bits.operators`."""
    return _sums(unpacked(x[:, : tiles.shape[1]]), tiles, outputs, zero, 1)


def pixel_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of pixels x, int32 [batch, outputs]; see `bnn_exp.bits.operators`."""
    return _sums(x, tiles, outputs, zero, 255)


def bit_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of bits x; see `bnn_exp.bits.operators`."""
    return steps(bit_sums(x, tiles, len(thresholds), zero), thresholds, inverted)


def pixel_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of pixels x; see `bnn_exp.bits.operators`."""
    return steps(pixel_sums(x, tiles, len(thresholds), zero), thresholds, inverted)


def real_product(x: Tensor, tiles: Tensor, outputs: int, zero: float, one: float) -> Tensor:
    """Returns the sums Σ x·w of real numbers x, [batch, outputs] of x's dtype; see `bnn_exp.bits.operators`."""
    return F.linear(x, _values(tiles, outputs, x.shape[1], zero, one, x.dtype))
