"""Exact products of small integers with binary weights, each computed in the fastest way that the processor offers.

- A CPU with VNNI instructions multiplies int8 × int8 → int32, in a quarter of the time of fp32 (1024² weights, batch 16384).
  Without VNNI int8 is slower, and torch's fp32 product is used.
- A GPU under bf16 autocast multiplies bf16 and sums in fp32 (`linear`). 0, ±½, ±1 and the pixels 0…255 are exact in bf16.

All ways give the same numbers, because every sum is an integer below 2²⁴. Gradients are computed as in a linear layer. Under
bf16 autocast the operands of gradients are rounded to bf16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnn_exp.nn.function import applied, in_bf16
from bnn_exp.nn.operators import operator
from bnn_exp.nn.saved import note_pixels, note_sums
from bnn_exp.nn.values import numbers_of_pixels

HAS_VNNI = getattr(torch.cpu, "_is_vnni_supported", lambda: False)() and hasattr(torch, "_int_mm")
_WORTH_IT = 128  # the least number of rows for which int8 saves more than the conversion costs (measured: 256² weights)


class _BinaryProduct(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, v: Tensor) -> Tensor:
        if _in_int8(x):
            return torch._int_mm(x.to(torch.int8), v.to(torch.int8).t()).to(v.dtype)
        return matmul(x, v.t(), in_bf16(x) and x.is_cuda)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.bf16 = in_bf16(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, v = ctx.saved_tensors
        return matmul(grad, v, ctx.bf16) if ctx.needs_input_grad[0] else None, matmul(grad.t(), x, ctx.bf16)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, v: Tensor) -> tuple[Tensor, int]:
        return _of_many(binary_product, in_dims, x, v)


class _PixelProduct(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, v: Tensor) -> Tensor:
        return pixel_sums(x, v).div_(255)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bf16 = in_bf16(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return None, matmul(grad.t(), x.to(grad.dtype), ctx.bf16).div_(255)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, v: Tensor) -> tuple[Tensor, int]:
        return _of_many(pixel_product, in_dims, x, v)


_binary_product, _pixel_product = applied(_BinaryProduct), applied(_PixelProduct)


def _of_many(product: Callable[[Tensor, Tensor], Tensor], in_dims: tuple, x: Tensor, v: Tensor) -> tuple[Tensor, int]:
    """Computes a product under vmap: many x with one v in one product, many v one after the other."""
    of_x, of_v = in_dims
    if of_v is None:
        xs = x.movedim(of_x, 0)
        return product(xs.flatten(0, 1), v).unflatten(0, xs.shape[:2]), 0
    vs = v.movedim(of_v, 0)
    inputs = [x] * len(vs) if of_x is None else x.movedim(of_x, 0)
    return torch.stack([product(*pair) for pair in zip(inputs, vs, strict=True)]), 0


def binary_product(x: Tensor, v: Tensor) -> Tensor:
    """Returns x Vᵀ for x [batch, in] and v [out, in] that hold only 0 and ±1."""
    return _binary_product(x, v)


def pixel_product(x: Tensor, v: Tensor) -> Tensor:
    """Returns x Vᵀ / 255 for pixels x, uint8 [batch, in], and v [out, in] that holds only 0 and ±1; in ≤ 2¹⁶."""
    return _pixel_product(x, v)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, v: Tensor) -> Tensor:
        ctx.pixels = x.dtype == torch.uint8
        operand = note_pixels(numbers_of_pixels(x, x.shape[1], v.dtype)) if ctx.pixels else x.to(v.dtype)
        ctx.save_for_backward(operand, v)
        ctx.dtypes = x.dtype, weight.dtype
        z = product_in_float32(operand, v.t(), torch.promote_types(v.dtype, torch.float32))
        return z.div_(255) if ctx.pixels else z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x, v), (of_x, of_weight) = ctx.saved_tensors, ctx.dtypes
        # One kernel converts the gradient and divides it.
        g = torch.div(grad, 255, out=torch.empty_like(grad, dtype=v.dtype)) if ctx.pixels else grad.to(v.dtype)
        at_x = product_in_float32(g, v, of_x) if ctx.needs_input_grad[0] else None
        return at_x, product_in_float32(g.t(), x, of_weight) if ctx.needs_input_grad[1] else None, None


def linear(x: Tensor, weight: Tensor, v: Tensor) -> Tensor:
    """Returns x Vᵀ on a GPU, float32. The gradient of V goes to `weight`, in float32.

    v [out, in] are the values of `weight`, bfloat16 or float32. x [batch, in] is rounded to the dtype of v; uint8 stands for
    x/255. Products of values with values or pixels are exact, and their sums too: the product adds up in float32 and is not
    rounded to bfloat16.
    """
    return note_sums(_Linear.apply(x, weight, v.detach()), x, v, v.shape[1])


@operator(
    "(Tensor a, Tensor b, ScalarType dtype) -> Tensor",
    kernels="bnn_exp.nn.product:on_tensor_cores",
    launches=1,
    fake=lambda a, b, dtype: a.new_empty(len(a), b.shape[1], dtype=dtype),
)
def product_in_float32(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a @ b as `dtype`, summed in float32 (float64 for operands of this dtype), independent of autocast."""
    return _widened(a, b, dtype)


def on_tensor_cores(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the result of `product_in_float32`. On a GPU, cuBLAS reads operands of bfloat16 as they are."""
    if not a.is_cuda or a.dtype != torch.bfloat16:
        return _widened(a, b, dtype)
    with torch.autocast(a.device.type, enabled=False):
        return torch.mm(a, b, out_dtype=torch.float32).to(dtype) if dtype != a.dtype else a @ b


def _widened(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return (a.to(wide) @ b.to(wide)).to(dtype)


def pixel_sums(x: Tensor, v: Tensor) -> Tensor:
    """Returns x Vᵀ, float32, without a gradient. x is uint8 [batch, in]; v [out, in] holds only 0 and ±1, in any dtype."""
    if not _in_int8(x):
        return matmul(x.float(), v.float().t(), in_bf16(x) and x.is_cuda)
    centred = x.bitwise_xor(128).view(torch.int8)  # x − 128 fits int8; 128·Σ v is added below
    sums = torch._int_mm(centred, v.to(torch.int8).t())
    return sums.add_(128 * v.sum(1).to(torch.int32)).float()


def _in_int8(x: Tensor) -> bool:
    if torch.compiler.is_exporting():  # an exported program takes any number of rows, so it cannot branch on len(x)
        return False
    # torch 2.13's _int_mm returns wrong sums on a CPU if there is only one column
    return HAS_VNNI and x.device.type == "cpu" and len(x) >= _WORTH_IT and x.shape[1] > 1


def matmul(a: Tensor, b: Tensor, bf16: bool) -> Tensor:
    """Returns a @ b in the wider of the two dtypes, independent of autocast.

    With `bf16` the operands are rounded to bf16 and the result is fp32. On a CPU the result is rounded to bf16 too.
    """
    with torch.autocast(a.device.type, enabled=False):
        if not bf16:
            wider = torch.promote_types(a.dtype, b.dtype)
            return a.to(wider) @ b.to(wider)
        a, b = a.bfloat16(), b.bfloat16()
        return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()
