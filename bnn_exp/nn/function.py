"""Autograd functions that torch.func can transform, and that cost no extra time outside of such a transform."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function


def transforming() -> bool:
    """Returns True inside a transform of torch.func, such as vmap."""
    return torch._C._are_functorch_transforms_active()


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
