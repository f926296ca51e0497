"""The bits of latent weights on a CPU, by numba's kernel; see `bnn_exp.bits.latents`."""

import torch
from torch import Tensor

from bnn_exp.bits.cpu.kernels import latents
from bnn_exp.bits.cpu.threads import share_out

_ALONE = 2**16  # weights; with fewer weights one thread is faster than two


def bits_above(x: Tensor, threshold: Tensor) -> Tensor:
    """Returns the packed bits 1[x > threshold]; see `bnn_exp.bits.latents.bits_above`."""
    bits = torch.zeros(-(-len(x) // 8), dtype=torch.uint8)
    follow(x, threshold, bits, torch.zeros((), dtype=torch.int64))
    return bits


def follow(x: Tensor, threshold: Tensor, bits: Tensor, flips: Tensor) -> None:
    """Updates packed bits and counts their flips; see `bnn_exp.bits.latents.follow`."""
    if x.dtype != torch.float32:  # the kernel compares float32
        x, threshold = (x > threshold).float(), torch.tensor(0.5)
    found: list[int] = []
    numbers, limit, packed = x.detach().numpy(), threshold.detach().numpy()[()], bits.numpy()

    def some(first: int, last: int) -> None:
        found.append(latents.follow(numbers, limit, packed, first, last))

    if len(x) < _ALONE:
        some(0, len(packed))
    else:
        share_out(some, len(packed))
    flips.add_(sum(found))
