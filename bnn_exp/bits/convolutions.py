"""The operators of packed CNNs: convolutions of codes and of bits with packed weights, and the mean of codes.

A *code* is a whole number that stands for an activation, uint8. Pixels are codes of 8 bits. Pictures lie in memory with
channels last: codes are uint8 [batch, height, width, channels]; packed bits are uint8 [batch, height, width, ⌈channels/8⌉],
where bit j of byte i belongs to channel 8i + j, and unused bits are 0.

A weight w is 1 for a bit 1, and `zero` (0 or −1) for a bit 0. A convolution has stride 1 and padding by size // 2. It computes
the sums u = Σ x·w, which are exact integers, turns the sums into codes or bits, and max-pools these. The functions here are the
definitions in plain torch. `bits.cpu.convolutions` and `bits.cuda.convolutions` compute the operators by kernels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.bits.reference import LANES
from bnn_exp.nn import device
from bnn_exp.nn.operators import operator
from bnn_exp.nn.requantize import requantize

_COMPILED, _KERNELS = "bnn_exp.bits.cpu.convolutions:", "bnn_exp.bits.cuda.convolutions:"


def to_rows(bits: Tensor, codes: bool) -> Tensor:
    """Packs the weights of a convolution into rows, uint8 [out, bytes], one for each output.

    A row holds the weights in the order of kernel rows, kernel columns and channels.

    Args:
        bits: uint8 [out, size, size, channels], 0 or 1.
        codes: True if the layer reads codes: zeros fill each kernel row up to whole bytes. False if the layer reads bits: zeros
            fill each place of the kernel up to whole bytes.
    """
    runs = bits.flatten(2) if codes else bits.flatten(1, 2)
    return reference.packed(F.pad(runs, (0, -runs.shape[2] % 8)).flatten(1))


def from_rows(packed: Tensor, size: int, channels: int, codes: bool) -> Tensor:
    """Returns the bits, uint8 [out, size, size, channels], that `to_rows` packed."""
    runs = (size, size * channels) if codes else (size * size, channels)
    bits = reference.unpacked(packed, torch.uint8).unflatten(1, (runs[0], -1))[:, :, : runs[1]]
    return bits.reshape(len(packed), size, size, channels)


def border_classes(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Returns the border class of each position of a row or column, int64 [length], from 0 to size − 1.

    At all positions of a class the same places of the kernel lie inside the picture. In class size // 2 all places do, if the
    row has at least `size` positions.

    Args:
        length: the number of positions of the row or column.
        size: the side of the kernel.
    """
    places, half = torch.arange(length, device=device), size // 2
    return places.clamp(max=half) + (places - (length - 1 - half)).clamp(min=0)


def _sums(x: Tensor, tiles: Tensor, outputs: int, size: int, zero: int, padding: Tensor | None, channels: int) -> Tensor:
    """Returns the sums u, int32 [batch, height, width, outputs], of codes or unpacked bits x, [batch, height, width, channels].

    Args:
        padding: uint8 [channels], the codes outside the picture. None: x is bits, and places outside the picture add nothing.
    """
    bits = from_rows(reference.from_tiles(tiles, outputs), size, channels, padding is not None)
    # On a GPU an algorithm such as Winograd's may round in float32. Sums of 2²⁴ or more need float64 too.
    exact = device.on_host(x) and 255 * bits[0].numel() < 2**24
    dtype = torch.float32 if exact else torch.float64
    weights = bits.to(dtype) * (1 - zero) + zero
    outside = x.new_zeros(channels) if padding is None else padding
    inside = x.to(dtype) - outside.to(dtype)
    sums = F.conv2d(inside.permute(0, 3, 1, 2), weights.permute(0, 3, 1, 2), padding=size // 2).permute(0, 2, 3, 1)
    return (sums + (weights * outside).sum((1, 2, 3))).round().to(torch.int32)


def _pooled(x: Tensor, pool: int) -> Tensor:
    """Returns x, [batch, height, width, channels], max-pooled by windows of pool × pool positions."""
    if pool == 1:
        return x
    batch, height, width, channels = x.shape
    height, width = height // pool, width // pool
    windows = x[:, : height * pool, : width * pool].reshape(batch, height, pool, width, pool, channels)
    return windows.amax((2, 4))


def _steps(sums: Tensor, thresholds: Tensor, inverted: Tensor, pool: int) -> Tensor:
    """Returns packed bits; see `bits_of_bits`."""
    _, height, width, outputs = sums.shape
    if len(thresholds) > 1:
        rows, columns = (border_classes(length, len(thresholds), sums.device) for length in (height, width))
        thresholds = thresholds[rows][:, columns]
    steps = _pooled((sums >= thresholds[..., :outputs]).to(torch.uint8), pool)
    bits = F.pad(steps ^ reference.unpacked(inverted[None], torch.uint8)[0, :outputs], (0, -outputs % 8))
    return reference.packed(bits.flatten(0, 2)).unflatten(0, steps.shape[:3])


def _empty(x: Tensor, size: int, pool: int, last: int) -> Tensor:
    """Returns an empty result of a convolution of x, uint8 [batch, height // pool, width // pool, last]."""
    return x.new_empty(x.shape[0], x.shape[1] // pool, x.shape[2] // pool, last)


@operator(
    "(Tensor x, Tensor tiles, Tensor padding, int size, int zero, Tensor bias, Tensor multiplier, int levels, int pool)"
    " -> Tensor",
    kernels=_KERNELS + "codes_of_codes",
    cpu=_COMPILED + "codes_of_codes",
    launches=2,
    fake=lambda x, tiles, padding, size, zero, bias, multiplier, levels, pool: _empty(x, size, pool, len(bias)),
)
def codes_of_codes(
    x: Tensor, tiles: Tensor, padding: Tensor, size: int, zero: int, bias: Tensor, multiplier: Tensor, levels: int, pool: int
) -> Tensor:
    """Returns the codes of a convolution of codes: clamp(rint((u + bias) · multiplier), 0, levels), max-pooled.

    rint rounds half to even. u + bias is an int32, then a float32.

    Args:
        x: uint8 [batch, height, width, channels].
        tiles: the tiles of the rows that `to_rows` makes for codes.
        padding: uint8 [channels], the codes outside the picture.
        bias, multiplier: int32 and float32 [out], see `bnn_exp.nn.requantize`.
        levels: the greatest code, up to 255.

    Returns:
        uint8 [batch, height // pool, width // pool, out].
    """
    sums = _sums(x, tiles, len(bias), size, zero, padding, x.shape[3])
    codes = requantize(sums.flatten(0, 2), bias, multiplier, levels).to(torch.uint8)
    return _pooled(codes.view(sums.shape), pool)


@operator(
    "(Tensor x, Tensor tiles, Tensor padding, int size, int outputs, int zero, Tensor thresholds, Tensor inverted, int pool)"
    " -> Tensor",
    kernels=_KERNELS + "bits_of_codes",
    cpu=_COMPILED + "bits_of_codes",
    launches=2,
    fake=lambda x, tiles, padding, size, outputs, *given: _empty(x, size, given[-1], -(-outputs // 8)),
)
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
    """Returns the bits of a convolution of codes; see `bits_of_bits`.

    Args:
        x, tiles, padding: see `codes_of_codes`.
        thresholds: int32 [1, 1, 64 · tiles].
    """
    return _steps(_sums(x, tiles, outputs, size, zero, padding, x.shape[3]), thresholds, inverted, pool)


@operator(
    "(Tensor x, Tensor tiles, int channels, int size, int outputs, int zero, Tensor thresholds, Tensor inverted, int pool)"
    " -> Tensor",
    kernels=_KERNELS + "bits_of_bits",
    cpu=_COMPILED + "bits_of_bits",
    launches=2,
    fake=lambda x, tiles, channels, size, outputs, *given: _empty(x, size, given[-1], -(-outputs // 8)),
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
    """Returns the bits 1[u ≥ threshold] of a convolution of bits, or 1[u < threshold] for an inverted output.

    A pooling window gives 1 if any of its sums reaches its threshold. Bits of an inverted output are inverted after it.

    Args:
        x: packed bits, uint8 [batch, height, width, ⌈channels/8⌉]. A bit counts as 0 or 1. Outside the picture all bits are 0.
        tiles: the tiles of the rows that `to_rows` makes for bits.
        thresholds: int32 [size, size, 64 · tiles]: for the border classes (`border_classes`) of row and column, and the output;
            or [1, 1, 64 · tiles] for all classes.
        inverted: packed bits, uint8 [8 · tiles].

    Returns:
        uint8 [batch, height // pool, width // pool, ⌈outputs/8⌉].
    """
    bits = reference.unpacked(x.flatten(0, 2), torch.uint8)[:, :channels].unflatten(0, x.shape[:3])
    return _steps(_sums(bits, tiles, outputs, size, zero, None, channels), thresholds, inverted, pool)


@operator(
    "(Tensor x, Tensor multiplier, int levels) -> Tensor",
    kernels=_KERNELS + "average_codes",
    cpu=_COMPILED + "average_codes",
    launches=1,
    fake=lambda x, multiplier, levels: x.new_empty(x.shape[0], 1, 1, x.shape[3]),
)
def average_codes(x: Tensor, multiplier: Tensor, levels: int) -> Tensor:
    """Returns the codes clamp(rint(Σ x · multiplier), 0, levels), uint8 [batch, 1, 1, channels].

    Args:
        x: codes, uint8 [batch, height, width, channels]. Σ runs over all positions.
        multiplier: a float32 without dimensions.
        levels: the greatest code, up to 255.
    """
    sums = x.to(torch.int32).sum((1, 2), keepdim=True, dtype=torch.int32)
    return (sums.to(torch.float32) * multiplier).round().clamp(0, levels).to(torch.uint8)


def thresholds_of(found: Tensor, groups: int) -> Tensor:
    """Returns the thresholds of whole tiles, int32 [rows, columns, 64 · groups].

    Args:
        found: the thresholds of the outputs, [rows, columns, outputs].
        groups: the number of tiles.
    """
    never = torch.iinfo(torch.int32).max  # no sum reaches this threshold, so unused outputs give bits 0
    return F.pad(found.to(torch.int32), (0, LANES * groups - found.shape[2]), value=never)
