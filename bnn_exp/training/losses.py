"""What a training minimises, by the names that trainer.loss takes."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of logits [batch, classes] with labels int64 [batch]."""
    return F.cross_entropy(logits, labels)


def squared_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Σ over the classes of max(0, 1 − t·z)², t = ±1 for the right class and the others, the mean over the batch.

    As in BinaryNet (Courbariaux et al. 2016, arXiv 1602.02830). Rows that are right by a margin have no gradient at all.
    """
    t = 2 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1
    return (1 - t * logits).clamp(min=0).square().sum(1).mean()
