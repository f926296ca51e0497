"""Adds up losses and right answers of an epoch on the device, so that Python reads them once, at the end of the epoch."""

import torch
from torch import Tensor

from bnn_exp.nn.operators import operator


@operator(
    "(Tensor(a!) losses, Tensor(b!) correct, Tensor batch, Tensor loss, Tensor right, int samples) -> ()",
    kernels="bnn_exp.nn.cuda.tally:note_batch",
    launches=1,
)
def note_batch(losses: Tensor, correct: Tensor, batch: Tensor, loss: Tensor, right: Tensor, samples: int) -> None:
    """Stores loss · samples in `losses`, float32 [batches], at the place `batch`, and adds `right` to `correct`.

    Args:
        batch: int64 scalar.
        loss: a scalar.
        right, correct: int64 scalars.
    """
    places = torch.arange(len(losses), device=losses.device)
    losses.masked_fill_(places == batch, (loss * samples).float())
    correct.add_(right)


class Tally:
    """The losses and right answers of the batches of an epoch. The tensors keep their addresses from epoch to epoch.

    Args:
        most: the largest number of batches of an epoch.

    Attributes:
        losses: float32 [most]: for each finished batch, the mean loss times the number of samples.
        correct: int64 scalar: the number of right answers in all finished batches.
    """

    def __init__(self, most: int, device: torch.device):
        self.losses = torch.zeros(most, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, batch: int | Tensor, loss: Tensor, correct: Tensor, samples: int) -> None:
        """Notes a batch.

        Args:
            batch: its number in the epoch, from 0; an int64 scalar on a GPU, where a CUDA graph may record this call.
            loss: the mean loss, a scalar.
            correct: the number of right answers, a scalar.
            samples: the number of samples.
        """
        if isinstance(batch, int):
            self.losses[batch] = loss * samples
            self.correct += correct
        else:
            note_batch(self.losses, self.correct, batch, loss, correct, samples)

    def state(self, batches: int) -> dict[str, object]:
        """Returns the numbers of the first `batches` batches, for a checkpoint."""
        return {"losses": [*self.losses[:batches].clone()], "correct": self.correct.clone()}

    def load(self, losses: list[Tensor], correct: Tensor | int) -> None:
        """Restores the numbers that `state` has returned."""
        self.correct.fill_(int(correct))
        if losses:
            self.losses[: len(losses)] = torch.stack(losses)
