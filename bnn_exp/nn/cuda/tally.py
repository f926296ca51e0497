"""Triton's kernel that adds a batch to a tally; the definition is in `bnn_exp.training.steps.tally`."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def note_kernel(losses, correct, batch, loss, right, samples):
    """Stores loss · samples at the place `batch` of `losses`, and adds `right` to `correct`."""
    tl.store(losses + tl.load(batch), tl.load(loss).to(tl.float32) * samples)
    tl.store(correct, tl.load(correct) + tl.load(right))


def note_batch(losses: Tensor, correct: Tensor, batch: Tensor, loss: Tensor, right: Tensor, samples: int) -> None:
    note_kernel[(1,)](losses, correct, batch, loss, right, samples)
