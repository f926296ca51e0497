"""Bits of latent weights, packed: a bit flips when its latent weight crosses the mean of the tensor."""

import torch
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.nn.operators import operator


def _bytes(x: Tensor, threshold: Tensor) -> Tensor:
    return x.new_empty(-(-len(x) // 8), dtype=torch.uint8)


def _numbers(x: Tensor, *_: Tensor) -> int:
    return len(x)


@operator(
    "(Tensor x, Tensor threshold) -> Tensor",
    "bnn_exp.bits.cuda.latents:bits_above",
    launches=1,
    fake=_bytes,
    cpu="bnn_exp.bits.cpu.latents:bits_above",
    numbers=_numbers,
)
def bits_above(x: Tensor, threshold: Tensor) -> Tensor:
    """Returns the packed bits 1[x > threshold] of numbers x [count]: uint8 [⌈count / 8⌉]. `threshold` is a scalar tensor."""
    return reference.packed(torch.nn.functional.pad((x > threshold).byte(), (0, -len(x) % 8))[None])[0]


@operator(
    "(Tensor x, Tensor threshold, Tensor(a!) bits, Tensor(b!) flips) -> ()",
    "bnn_exp.bits.cuda.latents:follow",
    launches=1,
    cpu="bnn_exp.bits.cpu.latents:follow",
    numbers=_numbers,
)
def follow(x: Tensor, threshold: Tensor, bits: Tensor, flips: Tensor) -> None:
    """Updates packed `bits`, a result of `bits_above`, to 1[x > threshold]. Adds the number of flips to `flips`, int64."""
    after = bits_above(x, threshold)
    flips += reference.unpacked((bits ^ after)[None]).sum().long()
    bits.copy_(after)
