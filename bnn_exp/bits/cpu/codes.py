"""The operators of `bnn_exp.nn.codes` on a CPU, by the kernels of `bnn_exp.bits.cpu.kernels.codes`.

A number of elements that is no multiple of 16 takes the definitions in torch.
"""

from inspect import unwrap

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.channels import flat
from bnn_exp.bits.cpu.kernels import codes as kernels
from bnn_exp.bits.cpu.kernels.codes import CHUNK
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.threads import share_chunks
from bnn_exp.nn import codes


def codes_of(y: Tensor, clip: Tensor, levels: int) -> Tensor:
    """Returns the codes of y, see `bnn_exp.nn.codes.codes_of`."""
    if not _readable(y):
        return unwrap(codes.codes_of)(y, clip, levels)
    out, given = torch.empty_like(y), (flat(y), float(codes.per_code(clip, levels)), levels)
    to = flat(out)
    share_chunks(lambda begin, end: kernels.set_codes(*given, begin, end, to), y.numel(), CHUNK)
    return out


def codes_gradient(grad: Tensor, made: Tensor, clip: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Returns the gradients at y and at the clip, see `bnn_exp.nn.codes.codes_gradient`."""
    if not _readable(grad) or grad.dtype != made.dtype:
        return unwrap(codes.codes_gradient)(grad, made, clip, levels)
    factor = float(codes.per_code(clip, levels))
    out, cut = torch.empty_like(grad), np.empty(-(-grad.numel() // CHUNK), np.float32)
    given, to = (flat(grad), flat(made), factor, levels), (flat(out), cut)
    share_chunks(lambda begin, end: kernels.set_code_gradients(*given, begin, end, *to), grad.numel(), CHUNK)
    return out, torch.tensor(float(cut.sum(dtype=np.float64)) * factor)


def _readable(x: Tensor) -> bool:
    return x.numel() % WIDTH == 0 and x.dtype in (torch.float32, torch.bfloat16)
