"""BatchNorm in evaluation, reduced to one scale and one shift for each channel."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
NO_EPS = 1e-30  # 1 + NO_EPS is 1 in float32 and float64. Some versions of torch (2.11) refuse eps = 0


def running_norms(network: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yields (name, BatchNorm) for every BatchNorm of a network that has running statistics."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            yield name, module


@torch.no_grad()
def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Returns scale and shift, float32 [channels] on the CPU. In evaluation `norm` is y = scale · x + shift, bit for bit.

    torch's own BatchNorm on a CPU computes scale from the input 1, and shift from the input 0. Where codes follow, the network
    itself computes with `exact_scale_and_shift`, which then is the result.
    """
    if getattr(norm, "codes_follow", False):
        scale, shift = exact_scale_and_shift(norm)
        return scale.cpu(), shift.cpu()
    held = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, var, weight, bias = (None if t is None else t.to("cpu", torch.float32) for t in held)
    zeros, ones = torch.zeros(1, norm.num_features), torch.ones(1, norm.num_features)
    scale = F.batch_norm(ones, zeros[0], var, weight, None if bias is None else zeros[0], eps=norm.eps)
    shift = F.batch_norm(zeros, mean, var, weight, bias, eps=norm.eps)
    return scale[0], shift[0]


@torch.no_grad()
def exact_scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Returns scale and shift, float32 [channels], in evaluation, on the device of `norm`.

    The calculation is in float64, by operations that IEEE 754 rounds correctly, so every device gives the same bits.
    """
    held: Any = norm.running_mean, norm.running_var, norm.weight, norm.bias
    mean, var, weight, bias = (t.double() for t in held)
    scale = (weight / (var + norm.eps).sqrt()).float()
    return scale, (bias - mean * scale).float()


def affine_norm(kind: type[_BatchNorm], scale: Tensor, shift: Tensor) -> _BatchNorm:
    """Returns a BatchNorm of class `kind`, in evaluation mode, that computes scale · x + shift.

    Args:
        scale, shift: float32 [channels] on the CPU.
    """
    norm = kind(len(scale), device="cpu")
    make_affine(norm)
    norm.load_state_dict({"weight": scale, "bias": shift}, strict=False)
    return norm.eval().requires_grad_(False)


def make_affine(norm: _BatchNorm) -> None:
    """Resets `norm` in place: in evaluation it then applies only its scale and shift, which start as 1 and 0."""
    device = next(norm.buffers()).device
    norm.eps, norm.affine = NO_EPS, True
    norm.weight = nn.Parameter(torch.ones(norm.num_features, device=device))
    norm.bias = nn.Parameter(torch.zeros(norm.num_features, device=device))
    norm.reset_running_stats()  # sets the running mean to 0 and the running variance to 1
