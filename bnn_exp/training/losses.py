"""The loss functions of this package, by the names that `trainer.loss` takes, and the number of right answers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnn_exp.nn.function import takes_kernels
from bnn_exp.nn.operators import operator

_KERNELS = "bnn_exp.nn.cuda.losses:"
BLOCK = 1024  # logits that one program of a kernel holds: on an H200 a program takes 20 µs for 16,384, and 2 µs for 1024


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy of logits [batch, classes] and labels, int64 [batch]: a scalar."""
    if _takes_kernels(logits):
        return _Mean.apply(logits, labels, "cross_entropy")
    return F.cross_entropy(logits, labels)


def squared_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean over the batch of Σ max(0, 1 − t·z)² over the classes: t is 1 for the right class and −1 for any other.

    BinaryNet uses this loss (Courbariaux et al. 2016, arXiv 1602.02830). A sample whose every t·z is at least 1 has a gradient
    of 0.

    Args:
        logits: z, [batch, classes].
        labels: int64 [batch].
    """
    if _takes_kernels(logits):
        return _Mean.apply(logits, labels, "squared_hinge")
    t = 2 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1
    return (1 - t * logits).clamp(min=0).square().sum(1).mean()


def right_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the number of samples whose largest logit is that of their label, an int64 scalar.

    The first of several largest logits counts.
    """
    if _takes_kernels(logits):
        return _whole(right_in_blocks(logits.contiguous(), labels, _rows(logits)))
    return (logits.argmax(1) == labels).sum()


def _whole(blocks: Tensor) -> Tensor:
    """Returns the sum of the results of all blocks of rows. One block needs no further kernel."""
    return blocks[0] if len(blocks) == 1 else blocks.sum()


def _takes_kernels(logits: Tensor) -> bool:
    known = logits.dim() == 2 and len(logits) > 0 and logits.dtype in (torch.float32, torch.bfloat16)
    return takes_kernels(logits) and known


def _rows(logits: Tensor) -> int:
    """Returns the number of samples of a block: a power of two, so that `BLOCK` holds their logits if there is a choice."""
    rows, classes = logits.shape
    return 1 << min((rows - 1).bit_length(), max(BLOCK.bit_length() - 1 - (classes - 1).bit_length(), 0))


@operator(
    "(Tensor logits, Tensor labels, int rows, str loss) -> Tensor",
    kernels=f"{_KERNELS}loss_in_blocks",
    launches=1,
    fake=lambda logits, labels, rows, loss: logits.new_empty(-(-len(labels) // rows), dtype=torch.float32),
)
def loss_in_blocks(logits: Tensor, labels: Tensor, rows: int, loss: str) -> Tensor:
    """Returns the part of each block of `rows` samples in the mean loss, float32 [blocks].

    Args:
        logits: [batch, classes], contiguous, float32 or bfloat16.
        labels: int64 [batch].
        loss: `cross_entropy` or `squared_hinge`.
    """
    z = logits.float()
    right = labels[:, None] == torch.arange(z.shape[1], device=z.device)
    if loss == "cross_entropy":
        each = z.logsumexp(1) - torch.where(right, z, 0).sum(1)
    else:
        each = (1 - torch.where(right, z, -z)).clamp(min=0).square().sum(1)
    return torch.stack([part.sum() for part in each.split(rows)]) / len(z)


@operator(
    "(Tensor scale, Tensor logits, Tensor labels, int rows, str loss) -> Tensor",
    kernels=f"{_KERNELS}loss_gradient",
    launches=1,
    fake=lambda scale, logits, *_: torch.empty_like(logits),
)
def loss_gradient(scale: Tensor, logits: Tensor, labels: Tensor, rows: int, loss: str) -> Tensor:
    """Returns `scale`, a scalar, times the gradient of the mean loss, in the shape and dtype of `logits`.

    A kernel computes blocks of `rows` samples. The other arguments are those of `loss_in_blocks`.
    """
    z = logits.float()
    right = labels[:, None] == torch.arange(z.shape[1], device=z.device)
    if loss == "cross_entropy":
        slope = z.softmax(1) - right.float()
    else:
        slope = 2 * torch.where(right, -1.0, 1.0) * (1 - torch.where(right, z, -z)).clamp(min=0)
    return (scale * slope / len(z)).to(logits.dtype)


@operator(
    "(Tensor logits, Tensor labels, int rows) -> Tensor",
    kernels=f"{_KERNELS}right_in_blocks",
    launches=1,
    fake=lambda logits, labels, rows: labels.new_empty(-(-len(labels) // rows)),
)
def right_in_blocks(logits: Tensor, labels: Tensor, rows: int) -> Tensor:
    """Returns the number of right answers in each block of `rows` samples, int64 [blocks]."""
    return torch.stack([right.sum() for right in (logits.argmax(1) == labels).split(rows)])


class _Mean(torch.autograd.Function):
    """The mean of a loss over the batch, float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, loss: str) -> Tensor:
        logits, ctx.how = logits.contiguous(), (_rows(logits), loss)
        ctx.save_for_backward(logits, labels)
        return _whole(loss_in_blocks(logits, labels, *ctx.how))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return loss_gradient(grad, *ctx.saved_tensors, *ctx.how), None, None
