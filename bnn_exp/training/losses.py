"""The loss functions of this package, by the names that `trainer.loss` takes."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy of logits [batch, classes] and labels, int64 [batch]: a scalar."""
    return F.cross_entropy(logits, labels)


def squared_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean over the batch of Σ max(0, 1 − t·z)² over the classes: t is 1 for the right class and −1 for any other.

    BinaryNet uses this loss (Courbariaux et al. 2016, arXiv 1602.02830). A sample whose every t·z is at least 1 has a gradient
    of 0.

    Args:
        logits: z, [batch, classes].
        labels: int64 [batch].
    """
    t = 2 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1
    return (1 - t * logits).clamp(min=0).square().sum(1).mean()
