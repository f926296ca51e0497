"""The operator of `bnn_exp.nn.convolution` on a CPU, by the kernel of `bnn_exp.bits.cpu.kernels.weight_gradient_of_pairs`.

Operands of another dtype than bfloat16, and a number of channels that is no multiple of 16, take the definition in torch.
"""

from inspect import unwrap

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.channels import flat, readable
from bnn_exp.bits.cpu.kernels.weight_gradient_of_pairs import add_weight_gradients
from bnn_exp.bits.cpu.threads import share_out
from bnn_exp.nn import convolution
from bnn_exp.nn.pooling import nhwc


def weight_gradient(x: Tensor, grad: Tensor, size: int) -> Tensor:
    """Returns the gradient at the weights of a convolution, see `bnn_exp.nn.convolution.weight_gradient`.

    The order of the terms of a sum depends on the number of threads.
    """
    images, grads = nhwc(x), nhwc(grad)
    if not convolution.HAS_PAIRS or not readable(images, grads) or {x.dtype, grad.dtype} != {torch.bfloat16}:
        return unwrap(convolution.weight_gradient)(x, grad, size)
    shape, outputs = tuple(images.shape), grads.shape[3]
    parts: dict[int, np.ndarray] = {}

    def add(begin: int, end: int) -> None:
        parts[begin] = np.zeros(size * size * shape[3] * outputs, np.float32)
        add_weight_gradients(flat(images), flat(grads), shape, outputs, size, begin, end, parts[begin])

    share_out(add, (len(images) + 1) // 2)
    sums = sum(parts[begin] for begin in sorted(parts))
    return torch.from_numpy(sums).view(size, size, shape[3], outputs).permute(3, 2, 0, 1).contiguous()
