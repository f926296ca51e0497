"""BatchNorm over the samples of all ranks. (torch's own SyncBatchNorm works on GPUs only.)"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnn_exp.nn.norm import NO_EPS
from bnn_exp.training.distributed.ranks import Ranks


class _Normalize(torch.autograd.Function):
    """BatchNorm over the samples of all ranks: γ·(x − mean)/√(var + ε) + β (Ioffe & Szegedy 2015, arXiv 1502.03167).

    x is [samples, channels, …], with any number of samples, also 0. The results are the normalised x, the mean, the
    biased variance and the number of values per channel. Statistics are summed in float64, so the order of the terms hardly
    matters. torch's own kernels compute the rest: the result equals that of nn.BatchNorm with the same statistics, to the bit.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks) -> Any:
        dims = [d for d in range(x.dim()) if d != 1]
        count = x.numel() // x.shape[1]
        sums = x.sum(dims, dtype=torch.float64)
        variance = torch.batch_norm_update_stats(x, None, None, 0.0)[1] if count else torch.zeros_like(sums)
        squares = variance.double() * count + sums.square() / max(count, 1)
        sums, squares, counts = ranks.sum(torch.stack([sums, squares, torch.full_like(sums, count)]))
        n = counts[0]
        mean = sums / n
        var = (squares / n - mean.square()).clamp_min(0)
        mean, var = mean.to(x.dtype), var.to(x.dtype)
        invstd = (var.double() + eps).rsqrt().to(x.dtype)
        alpha = invstd if weight is None else invstd * weight
        ctx.save_for_backward(x, mean, invstd, alpha, n)
        ctx.ranks, ctx.affine = ranks, weight is not None
        out = F.batch_norm(x, mean, torch.ones_like(mean), alpha, bias, training=False, eps=NO_EPS)
        ctx.mark_non_differentiable(mean, var, n)
        return out, mean, var, n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        """Returns ∂x = α·(∂y − (Σ∂y + x̂·Σ∂y·x̂)/n) with sums over all ranks; ∂γ = Σ∂y·x̂ and ∂β = Σ∂y over this rank alone."""
        x, mean, invstd, alpha, n = ctx.saved_tensors
        one = torch.ones_like(mean)
        if len(x):
            options = (alpha, mean, one, mean, one, False, NO_EPS, [True, True, True])
            dx, by_invstd, d_bias = torch.ops.aten.native_batch_norm_backward(grad, x, *options)
        else:  # this rank has no samples, and torch's kernel would divide by their number
            dx, by_invstd, d_bias = grad.clone(), torch.zeros_like(mean), torch.zeros_like(mean)
        d_weight = by_invstd * invstd
        every_weight, every_bias = ctx.ranks.sum(torch.stack([d_weight, d_bias])) / n.to(x.dtype)
        slope = -alpha * invstd * every_weight
        shape = [1, -1] + [1] * (x.dim() - 2)
        dx.addcmul_(x, slope.view(shape)).sub_((alpha * every_bias + slope * mean).view(shape))
        return dx, *((d_weight, d_bias) if ctx.affine else (None, None)), None, None


class SyncBatchNorm(_BatchNorm):
    """nn.BatchNorm1d or 2d, except that in training its statistics are taken over the samples of all ranks.

    A training computes in float32 and returns the dtype of its input, bfloat16 for the convolutions of a training in bf16.
    """

    ranks: Ranks

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"an input of {x.dim()} dimensions: BatchNorm takes [samples, channels, …]")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        numbers = x.to(torch.promote_types(x.dtype, torch.float32))
        out, mean, var, n = _Normalize.apply(numbers, self.weight, self.bias, self.eps, self.ranks)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (n / (n - 1)).to(var.dtype), momentum)
        return out.to(x.dtype)


def synchronize(network: nn.Module, ranks: Ranks) -> None:
    """Makes every nn.BatchNorm of `network` a SyncBatchNorm, in place. Parameters and names stay the same."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm
            module.ranks = ranks  # type: ignore[assignment]
