"""A convolution of binary weights, whose weight gradient is a kernel of this package where the library's kernel is slow.

cuDNN's deterministic kernels are slow where a layer has few channels and large images: on an H200 they took 78 µs for the
weight gradient of 16 → 16 channels on 128 images of 28 × 28 pixels, and the kernels of this package 21 µs. On a CPU that
multiplies pairs of bfloat16, this package's kernel takes three quarters of the time of oneDNN's for the layers of `bncvl`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from bnn_exp.nn import processor
from bnn_exp.nn.function import in_bf16, is_compiled
from bnn_exp.nn.operators import operator

# The most weights of a layer whose gradient a kernel of this package computes. At larger layers the library is faster. On a GPU
# the kernel counts places in 32 bits, so larger images go to the library too.
MOST = {"cuda": 64 * 32 * 9, "cpu": 64 * 128 * 9}
# This processor multiplies pairs of bfloat16. On one that has AMX too, oneDNN's kernels are faster.
HAS_PAIRS = processor.AVX512_BF16 and not processor.AMX


def takes_pairs(x: Tensor) -> bool:
    """Returns True if `convolution` pays for x, images on a CPU: under autocast to bfloat16, where the kernel can run."""
    return HAS_PAIRS and x.dtype == torch.bfloat16 and is_compiled(x) and in_bf16(x)


@operator(
    "(Tensor x, Tensor grad, int size) -> Tensor",
    kernels="bnn_exp.nn.cuda.convolution:weight_gradient",
    cpu="bnn_exp.bits.cpu.convolution:weight_gradient",
    launches=2,
    fake=lambda x, grad, size: x.new_empty(grad.shape[1], x.shape[1], size, size, dtype=torch.float32),
)
def weight_gradient(x: Tensor, grad: Tensor, size: int) -> Tensor:
    """Returns the gradient at the weights of a convolution with stride 1 and padding size // 2: [out, in, size, size], float32.

    Args:
        x: the inputs, bfloat16 [batch, in, height, width].
        grad: the gradient at the outputs, bfloat16 [batch, out, height, width].
        size: the side of the kernel, odd.
    """
    shape = grad.shape[1], x.shape[1], size, size
    with torch.autocast(x.device.type, enabled=False):
        return conv2d_weight(x.float(), shape, grad.float(), padding=size // 2)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, v: Tensor) -> Tensor:
        x = x.to(v.dtype)
        ctx.save_for_backward(x, v)
        ctx.dtypes = x.dtype, weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, v, padding=v.shape[2] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x, v), (of_x, of_weight) = ctx.saved_tensors, ctx.dtypes
        ours = v.dtype == torch.bfloat16 and v.numel() <= MOST[v.device.type] and max(x.numel(), grad.numel()) < 2**31
        wanted, pad = ctx.needs_input_grad, [v.shape[2] // 2] * 2
        with torch.autocast(x.device.type, enabled=False):
            how = [1, 1], pad, [1, 1], False, [0, 0], 1, [wanted[0], wanted[1] and not ours, False]
            at_x, at_v, _ = torch.ops.aten.convolution_backward(grad, x, v, None, *how)
        if wanted[1] and ours:
            at_v = weight_gradient(x, grad, v.shape[2])
        at_v = at_v if at_v is None else at_v.to(of_weight, memory_format=torch.contiguous_format)
        return at_x if at_x is None else at_x.to(of_x), at_v, None


def convolution(x: Tensor, weight: Tensor, v: Tensor) -> Tensor:
    """Returns x ∗ V in the dtype of v, with stride 1 and zeros around the images. The gradient of V goes to `weight`.

    v [out, in, size, size] are the values of `weight`, bfloat16 or float32, and size is odd. x [batch, in, height, width] is
    rounded to the dtype of v.
    """
    return _Convolution.apply(x, weight, v.detach())
