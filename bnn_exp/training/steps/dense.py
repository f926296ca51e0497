"""The training step in plain torch. Every other step replaces a part of this step, or wraps a step."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bnn_exp.nn.graphs import join
from bnn_exp.optim import Scheduled
from bnn_exp.optim.announcement import Announcement
from bnn_exp.optim.trained import Trained
from bnn_exp.training.batches import Batches
from bnn_exp.training.diagnostics import Diagnostics
from bnn_exp.training.losses import right_answers
from bnn_exp.training.memory.footprint import Footprint
from bnn_exp.training.steps.tally import Tally

if TYPE_CHECKING:
    from bnn_exp.config.losses import Loss


class Dense:
    """One training step: `step(rows)` → mean loss and number of right answers before the step.

    The methods `before` and `after` run in Python: they move counters and schedules. The call of the step is only arithmetic on
    the device, so a CUDA graph can record it.

    Args:
        network: the network that is trained and evaluated.
        batches: returns images and labels of the samples of a batch.
        loss: a function of logits [batch, classes] and labels [batch].
        rule: the optimizer of the binary weights.
        real: the optimizers of all other parameters.
        bf16: compute products in bfloat16 under autocast.
        compiled: compile the forward pass with torch.compile.
        diagnostics: observes every step; None for no observation.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Batches,
        loss: "Loss",
        rule: Trained,
        real: list[Scheduled],
        bf16: bool = False,
        compiled: bool = False,
        diagnostics: Diagnostics | None = None,
    ):
        self.network, self.batches, self.loss, self.rule, self.real = network, batches, loss, rule, real
        self.bf16 = bf16
        self.autocast = torch.autocast(batches.device.type, torch.bfloat16, enabled=bf16)
        self.forward = torch.compile(network, dynamic=False) if compiled else network
        self.answer: Callable[[Tensor], Tensor] = network
        self.diagnostics, self.footprint = diagnostics, Footprint(network)
        self.announcement = Announcement(batches.device, batches, rule, *real)
        self.tally = Tally(batches.most, batches.device)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Trains on the samples `rows`, int64 indices on the device.

        Returns:
            The mean loss and the number of right answers before the step, scalars on the device.
        """
        x, labels = self.batches(rows)
        loss, correct = self.passes(x, labels)
        self.update()
        self.tally.add(self.batches.batch, loss, correct, len(rows))
        return loss, correct

    def passes(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the forward and the backward pass. Returns the mean loss and the number of right answers, as the step does."""
        with self.footprint.saving(len(x)), self.autocast:
            logits = self.forward(x)
            loss = self.loss(logits, labels)
        for parameter in self.footprint.parameters:
            parameter.grad = None
        loss.backward()
        return loss.detach(), right_answers(logits.detach(), labels)

    def update(self) -> None:
        """Trains all parameters by their gradients."""
        self.footprint.note_gradients()
        self.rule.apply()
        for optimizer in self.real:
            optimizer.apply()
        if self.diagnostics:
            join()
            self.diagnostics.step()

    def before(self, rows: Tensor, epoch: int, batch: int) -> None:
        """Prepares the step on the samples `rows`, batch `batch` of epoch `epoch`. Both numbers count from 0."""
        self.batches.move_to(rows, epoch, batch)
        self.announcement.send()

    def constants(self) -> tuple:
        """Returns everything that the step reads from Python and that is not announced: a recorded step holds it."""
        return self.announcement.whole.data_ptr(), self.rule.constants(), *(each.constants() for each in self.real)

    def after(self) -> None:
        """Counts the step, and advances the schedules."""
        self.rule.count()
        for optimizer in self.real:
            optimizer.count()

    def begin_epoch(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Returns a function to call before each step of an epoch: True ends the epoch. Here it is `stop` itself."""
        return stop

    def end_epoch(self) -> dict[str, int]:
        """Returns the numbers that the step adds to the metrics of an epoch, by name."""
        return {}
