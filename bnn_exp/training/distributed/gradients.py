"""Combines the gradients of all ranks, in one of three forms (`engine.all_reduce`).

Each rank has the gradients of its share of the batch, already divided by the size of the whole batch. So the sum over the ranks
is the gradient of the batch, for any sizes of the shares. The form applies to the gradients of binary weights. All other
gradients, and the scalars of the step, are sent as fp32 in one buffer.

    send(ranks, binary, real, scalars, voters) -> scalars, bytes

A form replaces the gradients of `binary` and `real` (lists of parameters). It returns the sums of the scalars (float32) and the
number of bytes that this rank sent. Only the first `voters` ranks had samples in this step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import pack, reference, unpack
from bnn_exp.nn import device
from bnn_exp.training.distributed.ranks import Ranks


def fp32(ranks: Ranks, binary: list[Tensor], real: list[Tensor], scalars: Tensor, voters: int) -> tuple[Tensor, int]:
    """Sums gradients and scalars as float32, in one buffer. Arguments and results: see the module."""
    weights = [*binary, *real]
    total = ranks.sum(torch.cat([*(p.grad.flatten() for p in weights), scalars]))
    sums, scalars = total.split([len(total) - len(scalars), len(scalars)])
    _give(weights, sums)
    return scalars, total.nbytes


def int8(ranks: Ranks, binary: list[Tensor], real: list[Tensor], scalars: Tensor, voters: int) -> tuple[Tensor, int]:
    """Sums the gradients of binary weights as 8-bit integers times a scale. Arguments and results: see the module.

    Each tensor has one scale on all ranks: the greatest |g| of any rank over ⌊127/ranks⌋, so no sum overflows. The sum differs
    from the exact sum by at most half a scale per rank. With two ranks a gradient has 127 levels, with eight ranks 31.
    """
    scales = ranks.max(torch.stack([p.grad.abs().max() for p in binary])) / (127 // ranks.size)
    scales = scales.clamp_min(torch.finfo(scales.dtype).tiny)
    levels = torch.cat([(p.grad / scale).round().to(torch.int8).flatten() for p, scale in zip(binary, scales, strict=True)])
    _give(binary, ranks.sum(levels).to(scales.dtype))
    for p, scale in zip(binary, scales, strict=True):
        p.grad *= scale
    scalars, rest = fp32(ranks, [], real, scalars, voters)
    return scalars, scales.nbytes + levels.nbytes + rest


def sign(ranks: Ranks, binary: list[Tensor], real: list[Tensor], scalars: Tensor, voters: int) -> tuple[Tensor, int]:
    """Replaces the gradient of each binary weight by ±1, the majority vote of the ranks. Arguments and results: see the module.

    Each rank sends one bit per weight. After a tie the gradient has the sign that keeps the weight as it is. The method is
    signSGD with majority vote (Bernstein et al. 2018, arXiv 1802.04434), except for the tie.
    """
    ballot = _packed(torch.cat([p.grad.flatten() <= 0 for p in binary]))  # the bits that this rank votes for: w* = 1[−g ≥ 0]
    weights = torch.cat([p.detach().flatten() for p in binary])
    ones = torch.stack([_unpacked(b, len(weights)) for b in ranks.gather(ballot)[:voters]]).sum(0)
    _give(binary, torch.where(2 * ones == voters, 1 - 2 * weights, (voters - 2 * ones).sign()))
    scalars, rest = fp32(ranks, [], real, scalars, voters)
    return scalars, ballot.nbytes + rest


def _packed(bits: Tensor) -> Tensor:
    """Returns bools [count] as packed bits, uint8 [⌈count/8⌉], on the same device."""
    return pack(bits) if device.on_host(bits) else reference.packed(F.pad(bits, (0, -len(bits) % 8))[None])[0]


def _unpacked(ballot: Tensor, count: int) -> Tensor:
    """Returns the first `count` packed bits as float32 [count], on the same device."""
    return unpack(ballot, (count,)) if device.on_host(ballot) else reference.unpacked(ballot[None])[0, :count]


def _give(parameters: Sequence[Tensor], flat: Tensor) -> None:
    """Sets the gradients of the parameters to consecutive pieces of `flat`."""
    pieces = flat.split([p.numel() for p in parameters]) if parameters else ()
    for p, piece in zip(parameters, pieces, strict=True):
        p.grad = piece.view_as(p)


SEND = {"fp32": fp32, "int8": int8, "sign": sign}
