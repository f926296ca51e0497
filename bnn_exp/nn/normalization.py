"""A normalisation, the activation that follows it, and max-pooling, together: `normalized`."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from bnn_exp.nn import batch_norm
from bnn_exp.nn.binary import Binarize, two_values
from bnn_exp.nn.function import in_bf16, is_compiled, takes_kernels
from bnn_exp.nn.known_classes import difference
from bnn_exp.nn.pooled_norm import normalize_pooled, normalize_pooled_gradient
from bnn_exp.nn.pooling import fits, max_pool, nhwc
from bnn_exp.nn.saved import note_values
from bnn_exp.nn.standardize import Standardize, standardize, standardize_gradient


@dataclass(frozen=True)
class _Activation:
    """An activation, as the operators of `bnn_exp.nn.batch_norm` take it."""

    name: str
    low: float = 0.0
    high: float = 0.0
    window: float = 0.0


def normalized(norm: Any, activation: Any, z: Tensor, pool: int = 1) -> Tensor:
    """Returns activation(norm(z)), or norm(z) if `activation` is None, max-pooled by windows of `pool` × `pool` positions.

    On a GPU, and for large images of a training on a CPU, torch's BatchNorm and `Standardize` with the activations ReLU,
    Identity and `Binarize` take few kernels (`bnn_exp.nn.batch_norm`, `bnn_exp.nn.standardize`, `bnn_exp.nn.pooled_norm`),
    unless a module has hooks. They compute in float32. Under bf16 autocast the output of an activation is bfloat16, as the next
    product reads it; without an activation the output has the dtype of z.

    Args:
        z: [batch, channels], or [batch, channels, height, width].
    """
    taken = takes_kernels(z) or (is_compiled(z) and norm.training)
    if taken and z.dtype in (torch.float32, torch.bfloat16) and (kind := _kind(activation)):
        dtype = torch.bfloat16 if in_bf16(z) and kind.name != "identity" else z.dtype
        if _is_batch_norm(norm, z):
            if pool > 1 and is_compiled(z) and kind.name != "binary" and fits(z, pool):
                return _BatchNormPooled.apply(z, norm.weight, norm.bias, norm, pool, kind.name, dtype)
            return max_pool(_noted(_batch_norm(norm, kind, z, dtype), kind), pool)
        if _is_standardize(norm, z):
            return max_pool(_noted(_Standardized.apply(z, norm.dims, kind, dtype), kind), pool)
    return max_pool(norm(z) if activation is None else activation(norm(z)), pool)


def _noted(y: Tensor, kind: _Activation) -> Tensor:
    return note_values(y, kind.low, kind.high) if kind.name == "binary" else y


def _kind(activation: Any) -> _Activation | None:
    """Returns an activation for the operators; None if they lack this activation, or if a hook would see its tensors."""
    if isinstance(activation, Binarize):
        window = float("inf") if activation.window is None else activation.window
        return _Activation("binary", *two_values(activation.encoding), window)
    if activation is None:
        return _Activation("identity")
    if isinstance(activation, nn.Module) and not difference(activation, "ReLU", "Identity"):
        return _Activation("relu" if isinstance(activation, nn.ReLU) else "identity")
    return None


def _is_batch_norm(norm: nn.Module, z: Tensor) -> bool:
    """Returns True if `norm` is a BatchNorm of torch without hooks, and the operators compute what `norm` computes of z."""
    if not isinstance(norm, _BatchNorm) or difference(norm, "BatchNorm1d", "BatchNorm2d") or norm.momentum is None:
        return False
    fits = z.dim() == (2 if isinstance(norm, nn.BatchNorm1d) else 4) and z.shape[1] == norm.num_features
    affine = norm.weight, norm.bias
    held = [t for t in (*affine, norm.running_mean, norm.running_var) if t is not None]
    float32 = all(t.dtype == torch.float32 for t in held) and (norm.weight is None) == (norm.bias is None)
    if _of_batch(norm):
        return fits and float32 and z.numel() > z.shape[1]
    gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (z, *affine))
    return fits and float32 and not gradient


def _of_batch(norm: _BatchNorm) -> bool:
    """Returns True if `norm` takes its statistics from the batch."""
    return norm.training or norm.running_mean is None


def _is_standardize(norm: nn.Module, z: Tensor) -> bool:
    """Returns True if `norm` is a `Standardize` without hooks, and the operators compute what `norm` computes of z."""
    if not isinstance(norm, Standardize) or difference(norm, "Standardize"):
        return False
    fits = (z.dim(), norm.dims) in ((2, (1,)), (4, (1, 2, 3)), (4, (2, 3)))
    return fits and len(z) > 0 and prod(z.shape[d] for d in norm.dims) > 1


def _batch_norm(norm: Any, kind: _Activation, z: Tensor, dtype: torch.dtype) -> Tensor:
    if _of_batch(norm):
        return _BatchNormed.apply(z, norm.weight, norm.bias, norm, kind, dtype)
    vectors = norm.running_mean, norm.running_var, norm.weight, norm.bias
    return _of_rows(batch_norm.normalize(_rows(z), *vectors, norm.eps, kind.name, kind.low, kind.high, dtype), z)


def _rows(x: Tensor) -> Tensor:
    """Returns x as contiguous [rows, channels]: a view of a contiguous vector of each sample, or of channels-last images."""
    rows = x if x.dim() == 2 else x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return rows.contiguous()  # an expanded gradient is a view with strides of 0


def _of_samples(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Returns x as contiguous [samples, numbers, columns], where a norm over `dims` is one over the numbers."""
    rows = _rows(x).view(len(x), -1, x.shape[1])
    return rows if dims == (2, 3) else rows.view(len(x), -1, 1)


def _of_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Returns [rows, channels], or `_of_samples`, in the shape of `like`; images are channels-last."""
    if like.dim() == 2:
        return rows.view(like.shape)
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


class _BatchNormed(torch.autograd.Function):
    """The activation of a BatchNorm in training. The backward pass keeps z, and the mean and variance of its channels."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Any, kind: _Activation, dtype: torch.dtype
    ) -> Tensor:
        rows = _rows(z)
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum
        how = kind.name, kind.low, kind.high, dtype
        if len(rows) <= batch_norm.FEW:
            y, *moments = batch_norm.normalize_few(rows, *running, weight, bias, norm.eps, *how)
        else:
            moments = batch_norm.batch_statistics(rows, *running)
            y = batch_norm.normalize(rows, *moments, weight, bias, norm.eps, *how)
        ctx.save_for_backward(rows, *moments, weight, bias)
        ctx.eps, ctx.kind = norm.eps, kind
        return _of_rows(y, z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, *norm = ctx.saved_tensors
        gradient = batch_norm.normalize_few_gradient if len(rows) <= batch_norm.FEW else batch_norm.normalize_gradient
        at_z, of_weight, of_bias = gradient(_rows(grad), rows, *norm, ctx.eps, ctx.kind.name, ctx.kind.window)
        return _of_rows(at_z, grad), *((None, None) if norm[2] is None else (of_weight, of_bias)), None, None, None


class _BatchNormPooled(torch.autograd.Function):
    """The max-pooled activation of a BatchNorm in training. The backward pass also keeps a byte for each window."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: Any,
        pool: int,
        activation: str,
        dtype: torch.dtype,
    ) -> Tensor:
        images = nhwc(z)
        running = norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum
        moments = batch_norm.batch_statistics(images.flatten(0, 2), *running)
        y, places = normalize_pooled(images, pool, *moments, weight, bias, norm.eps, activation, dtype)
        ctx.save_for_backward(places, images, *moments, weight, bias)
        ctx.pool, ctx.eps = pool, norm.eps
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        places, images, *norm = ctx.saved_tensors
        at_z, *others = normalize_pooled_gradient(nhwc(grad), places, images, ctx.pool, *norm, ctx.eps)
        return at_z.permute(0, 3, 1, 2), *((None, None) if norm[2] is None else others), None, None, None, None


class _Standardized(torch.autograd.Function):
    """The activation of `Standardize`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, dims: tuple[int, ...], kind: _Activation, dtype: torch.dtype) -> Tensor:
        samples = _of_samples(z, dims)
        y, *moments = standardize(samples, kind.name, kind.low, kind.high, dtype)
        ctx.save_for_backward(samples, *moments)
        ctx.dims, ctx.kind = dims, kind
        return _of_rows(y, z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        given = _of_samples(grad, ctx.dims), *ctx.saved_tensors
        return _of_rows(standardize_gradient(*given, ctx.kind.name, ctx.kind.window), grad), None, None, None
