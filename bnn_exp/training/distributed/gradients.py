"""The gradients of all ranks made one, by `engine.all_reduce`: what is sent of the binary weights' gradients.

Each rank's gradients are those of its share of the rows, already divided by the rows of the whole batch, so the sum over the
ranks is the gradient of the batch whatever the sizes of the shares. All other parameters' gradients, and the scalars of the
step, always go as fp32, in one buffer.

    send(ranks, binary, real, scalars, voters) -> scalars, bytes

replaces the gradients of `binary` and `real` (lists of parameters) and returns the sums of the scalars (float32) with the bytes
that this rank handed over to be reduced. `voters` of the ranks, the first ones, had rows in this step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_exp.bits import pack, unpack
from bnn_exp.training.distributed.ranks import Ranks


def fp32(ranks: Ranks, binary: list[Tensor], real: list[Tensor], scalars: Tensor, voters: int) -> tuple[Tensor, int]:
    """The sum, as float32: one buffer for everything."""
    weights = [*binary, *real]
    total = ranks.sum(torch.cat([*(p.grad.flatten() for p in weights), scalars]))
    sums, scalars = total.split([len(total) - len(scalars), len(scalars)])
    _give(weights, sums)
    return scalars, total.nbytes


def int8(ranks: Ranks, binary: list[Tensor], real: list[Tensor], scalars: Tensor, voters: int) -> tuple[Tensor, int]:
    """The sum of integers of 8 bits, times a scale that each tensor has on all ranks.

    The scale is the greatest |g| of any rank over ⌊127/ranks⌋, so that no sum overflows; a sum is wrong by half a scale a rank
    at most. A gradient of two ranks has 127 levels, one of eight has 31.
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
    """±1 by the vote of the majority of the ranks, a bit a weight and rank; a tie is what keeps the weight as it is.

    (signSGD with majority vote: Bernstein et al. 2018, arXiv 1802.04434; the tie is ours, for weights that are bits.)
    """
    ballot = pack(torch.cat([p.grad.flatten() <= 0 for p in binary]))  # 1 for w* = 1[−g ≥ 0]
    weights = torch.cat([p.detach().flatten() for p in binary])
    ballots = ranks.gather(ballot.to(weights.device))[:voters]
    ones = torch.stack([unpack(b, weights.shape) for b in ballots]).sum(0).to(weights.device)
    _give(binary, torch.where(2 * ones == voters, 1 - 2 * weights, (voters - 2 * ones).sign()))
    scalars, rest = fp32(ranks, [], real, scalars, voters)
    return scalars, ballot.nbytes + rest


def _give(parameters: Sequence[Tensor], flat: Tensor) -> None:
    """Make pieces of `flat` the gradients of the parameters."""
    pieces = flat.split([p.numel() for p in parameters]) if parameters else ()
    for p, piece in zip(parameters, pieces, strict=True):
        p.grad = piece.view_as(p)


SEND = {"fp32": fp32, "int8": int8, "sign": sign}
