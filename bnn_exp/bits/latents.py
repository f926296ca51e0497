"""Flips of latent weights: a bit flips when its latent weight crosses the mean of the tensor (`bnn_exp.nn.binary.quantize`)."""

import torch
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.nn import device
from bnn_exp.nn.binary import quantize
from bnn_exp.nn.operators import operator


def note(latent: Tensor) -> Tensor:
    """Returns the bits of latent weights, as `count_flips` takes them: one bit a weight on a GPU, else numbers 0 and 1."""
    return quantize(latent) if device.on_host(latent) else bits_above(latent.reshape(-1), latent.mean())


def count_flips(latent: Tensor, noted: Tensor, flips: Tensor) -> None:
    """Adds to `flips`, int64 scalar, the number of bits of latent weights that differ from their bits `noted` before."""
    if device.on_host(latent):
        flips += (quantize(latent) != noted).sum()
    else:
        count_changes(latent.reshape(-1), latent.mean(), noted, flips)


def _bytes(x: Tensor, threshold: Tensor) -> Tensor:
    return x.new_empty(-(-len(x) // 8), dtype=torch.uint8)


@operator("(Tensor x, Tensor threshold) -> Tensor", "bnn_exp.bits.cuda.latents:bits_above", launches=1, fake=_bytes)
def bits_above(x: Tensor, threshold: Tensor) -> Tensor:
    """Returns the packed bits 1[x > threshold] of numbers x [count]: uint8 [⌈count / 8⌉]. `threshold` is a scalar tensor."""
    return reference.packed(torch.nn.functional.pad((x > threshold).byte(), (0, -len(x) % 8))[None])[0]


@operator(
    "(Tensor x, Tensor threshold, Tensor bits, Tensor(a!) flips) -> ()", "bnn_exp.bits.cuda.latents:count_changes", launches=1
)
def count_changes(x: Tensor, threshold: Tensor, bits: Tensor, flips: Tensor) -> None:
    """Adds to `flips`, int64 scalar, the number of bits 1[x > threshold] that differ from `bits`, a result of `bits_above`."""
    flips += (reference.unpacked(bits[None], torch.bool)[0, : len(x)] != (x > threshold)).sum()
