"""The operator of `bnn_exp.nn.convolution` on a CPU, by the kernel of `bnn_exp.bits.cpu.kernels.kernel_gradient`.

Images of another dtype than bfloat16, and a number of channels that is no multiple of 16, take the definition in torch.
"""

from inspect import unwrap

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.channels import flat, readable
from bnn_exp.bits.cpu.kernels.kernel_gradient import add_kernel_gradients
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.nn import convolution


def kernel_gradient(grad: Tensor, x: Tensor, side: int) -> Tensor:
    if not convolution.HAS_PAIRS or not readable(grad, x) or {grad.dtype, x.dtype} != {torch.bfloat16}:
        return unwrap(convolution.kernel_gradient)(grad, x, side)
    shape, outputs, parts = tuple(x.shape), grad.shape[3], {}

    def add(begin: int, end: int) -> None:
        parts[begin] = np.zeros(side * side * shape[3] * outputs, np.float32)
        add_kernel_gradients(flat(x), flat(grad), shape, outputs, side, begin, end, parts[begin])

    share_out(add, len(x))
    sums = sum(parts[begin] for begin in sorted(parts))  # in a fixed order, which depends on the number of threads only
    return torch.from_numpy(sums).view(side, side, shape[3], outputs).permute(3, 2, 0, 1).contiguous()
