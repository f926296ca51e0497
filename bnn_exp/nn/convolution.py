"""Convolutions by the values of bits. In bfloat16 on a CPU the gradient of the kernels has a compiled form."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnn_exp.nn.function import in_bf16, is_compiled
from bnn_exp.nn.operators import operator
from bnn_exp.nn.pooling import nhwc


def _supported(feature: str) -> bool:
    return getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)()


# This processor multiplies pairs of bfloat16. One with AMX has torch's faster products.
HAS_PAIRS = _supported("avx512_bf16") and not _supported("amx_tile")


def convolution(x: Tensor, weight: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns the convolution of x with v, of stride 1, on images padded by side // 2 zeros.

    Args:
        x: [batch, in, height, width].
        weight: the bits, the latent weights or the float weights whose values are v.
        v: [out, in, side, side], of an odd side.
        bias: the values to add, [out].
    """
    pad = v.shape[2] // 2
    if HAS_PAIRS and bias is None and x.dtype == torch.bfloat16 and is_compiled(x) and in_bf16(x):
        return _Convolution.apply(x, weight, v.detach().to(torch.bfloat16, memory_format=torch.channels_last), pad)
    return F.conv2d(x, v, bias, padding=pad)


class _Convolution(torch.autograd.Function):
    """The convolution of x, bfloat16, with the values v of `weight`. The gradient of v goes to `weight`, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, v: Tensor, pad: int) -> Tensor:
        ctx.save_for_backward(x, v)
        ctx.pad = pad
        return torch.conv2d(x, v, padding=pad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, v = ctx.saved_tensors
        of_x, of_weight, *_ = ctx.needs_input_grad
        at_x = _gradients(grad, x, v, ctx.pad, (True, False, False))[0] if of_x else None
        return at_x, kernel_gradient(nhwc(grad), nhwc(x), v.shape[2]) if of_weight else None, None, None


def _gradients(grad: Tensor, x: Tensor, v: Tensor, pad: int, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
    """Returns torch's gradients of a convolution at x, v and the bias, None for those that are not `wanted`."""
    options = (1, 1), (pad, pad), (1, 1), False, (0, 0), 1
    return torch.ops.aten.convolution_backward(grad, x, v, None, *options, wanted)


@operator(
    "(Tensor grad, Tensor x, int side) -> Tensor",
    kernels=None,
    launches=3,
    fake=lambda grad, x, side: grad.new_empty(grad.shape[3], x.shape[3], side, side, dtype=torch.float32),
    cpu="bnn_exp.bits.cpu.convolution:kernel_gradient",
)
def kernel_gradient(grad: Tensor, x: Tensor, side: int) -> Tensor:
    """Returns the gradient of the kernels of a convolution: float32 [outputs, inputs, side, side], summed in float32.

    Args:
        grad: the gradient at the convolution's output, [batch, height, width, outputs], contiguous.
        x: the images, [batch, height, width, inputs], contiguous.
        side: the side of the kernels, odd. The convolution pads images by side // 2 zeros.
    """
    grad, x = (t.permute(0, 3, 1, 2).float() for t in (grad, x))
    kernels = grad.new_empty(grad.shape[1], x.shape[1], side, side)
    return _gradients(grad, x, kernels, side // 2, (False, True, False))[1]
