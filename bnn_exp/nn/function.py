"""The surroundings in which a function runs: a transform of torch.func, autocast, a GPU.

`applied` makes autograd functions that torch.func can transform, and that cost no extra time outside of such a transform.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bnn_exp.nn import device

MANY = 2**17  # the least number of elements of images for which compiled operators pay on a CPU


def transforming() -> bool:
    """Returns True inside a transform of torch.func, such as vmap."""
    return torch._C._are_functorch_transforms_active()


def takes_kernels(x: Tensor) -> bool:
    """Returns True if layers compute on `x` by the operators of this package, which have kernels for a GPU.

    torch.func and torch.compile see through plain torch only, so both get the plain form, as a CPU does.
    """
    return not (device.on_host(x) or needs_torch(x))


def is_compiled(x: Tensor) -> bool:
    """Returns True if layers compute on `x`, images on a CPU, by the operators of this package that are compiled for a CPU.

    The compiled operators take 16 channels at a time. Small images stay with torch, because the import of numba takes 0.4 s.
    """
    known = x.dim() == 4 and x.shape[1] % 16 == 0 and x.dtype in (torch.float32, torch.bfloat16)
    # The size comes last, because torch.export keeps every condition on the batch size that it sees.
    return known and device.on_host(x) and not needs_torch(x) and x.numel() >= MANY


def needs_torch(x: Tensor) -> bool:
    """Returns True if `x` must take plain torch only: under torch.func and torch.compile, and on the meta device."""
    return torch.compiler.is_compiling() or x.is_meta or transforming()


def in_bf16(x: Tensor) -> bool:
    """Returns True if products of `x` are computed in bfloat16: under autocast to this dtype."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16


def applied(kind: type[Function]) -> Callable:
    """Returns a faster `kind.apply`, for a Function `kind` that defines `setup_context`.

    torch.func needs `setup_context`, but torch then binds the arguments again at each call. This takes 15 µs on a CPU, which
    slows the steps of small networks. Outside of a transform the returned function uses a twin class whose `forward` also does
    the work of `setup_context`.
    """

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = kind.forward(*arguments)
        kind.setup_context(ctx, arguments, output)
        return output

    once: Any = type(kind.__name__, (Function,), {"forward": staticmethod(forward), "backward": staticmethod(kind.backward)})

    def apply(*arguments: Any) -> Any:
        return (kind if transforming() else once).apply(*arguments)

    return apply
