"""The step of one rank among others: trains on a share of each batch, and exchanges gradients once in a step."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnn_exp.config.settings import Settings
from bnn_exp.training.distributed.batch_norm import synchronize
from bnn_exp.training.distributed.gradients import SEND
from bnn_exp.training.distributed.ranks import Ranks, share, voters
from bnn_exp.training.steps.dense import Dense

if TYPE_CHECKING:
    from bnn_exp.config.losses import Loss


LATE = 2  # steps: Python queues at most this many steps before it waits for the GPU


class LateReader:
    """A function that takes a number on a GPU and returns the number of `late` calls before. So Python waits for old work only.

    The first `late` results are 0. A number on the CPU is returned at once.
    """

    def __init__(self, late: int):
        self.late = late
        self.waiting: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def __call__(self, number: Tensor) -> float:
        if not number.is_cuda:
            return float(number)
        copy = torch.empty((), dtype=number.dtype, pin_memory=True).copy_(number, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.waiting.append((copy, event))
        if len(self.waiting) <= self.late:
            return 0.0
        copy, event = self.waiting.popleft()
        event.synchronize()
        return float(copy)


class Exchanged:
    """A step on this rank's share of a batch. After the step every rank holds the network that a single device would hold.

    The ranks send loss, right answers and the wish to stop together with the gradients. So every rank knows the numbers of the
    whole batch, and all ranks stop after the same batch. On a GPU they stop `LATE` batches later, so that no step waits for the
    GPU, and a CUDA graph can record the call of the step.

    Args:
        build: makes the step of this rank from a loss function.
        loss: the loss of the training.
    """

    def __init__(self, settings: Settings, build: "Callable[[Loss], Dense]", loss: "Loss", ranks: Ranks):
        self.ranks, self.send, self.loss = ranks, SEND[settings.engine.all_reduce], loss
        self.step = build(self._loss_of_share)
        network, rule = self.step.network, self.step.rule
        self.size, self.bytes_reduced = 0, 0  # samples of the whole batch; bytes that this rank sends in a step
        # Returns True if this rank wishes to stop; `stopping` holds the decision of all ranks.
        self.wants_to_stop: Callable[[], bool] = lambda: False
        self.stopping = False
        self.wish = torch.zeros((), device=self.step.batches.device)  # 1 if this rank wishes to stop
        self.wishes = torch.zeros_like(self.wish)  # the number of ranks that wished to stop in the last step
        self.read = LateReader(LATE)
        self.bits = [p for p in rule.tensors() if p.requires_grad]
        binary = {id(p) for p in self.bits}
        self.reals = [p for p in network.parameters() if id(p) not in binary and p.requires_grad]
        if settings.engine.sync_batch_norm:
            synchronize(network, ranks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def _loss_of_share(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the share's part of the mean loss of the whole batch; 0, with a gradient of 0, for an empty share."""
        return self.loss(logits, labels) * (len(labels) / self.size) if len(labels) else logits.sum()

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Trains on the samples `rows` with all ranks; see `Dense`.

        Raises:
            RankLost: another rank has ended.
        """
        self.size = len(rows)
        x, labels = self.step.batches(rows, share(self.size, self.ranks.rank, self.ranks.size))
        loss, correct = self.step.passes(x, labels)
        scalars = torch.stack([loss, correct.to(loss.dtype), self.wish.to(loss.dtype)])
        scalars, self.bytes_reduced = self.send(self.ranks, self.bits, self.reals, scalars, voters(self.size, self.ranks.size))
        self.step.update()
        self.wishes.copy_(scalars[2])
        loss, correct = scalars[0].clone(), scalars[1].long()
        self.step.tally.add(self.step.batches.batch, loss, correct, self.size)
        return loss, correct

    def before(self, rows: Tensor, epoch: int, batch: int) -> None:
        """Prepares the step, see `Dense.before`."""
        if self.wants_to_stop():
            self.wish.fill_(1)
        self.step.before(rows, epoch, batch)

    def after(self) -> None:
        """Counts the step, and reads the decision of the ranks to stop."""
        self.step.after()
        self.stopping = self.read(self.wishes) > 0

    def begin_epoch(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Returns a function to call before each step: it returns True if `stop` has returned True on any rank."""
        self.wants_to_stop = stop
        self.wish.zero_()
        self.read.waiting.clear()
        self.stopping = self.ranks.any(stop())
        return lambda: self.stopping

    def end_epoch(self) -> dict[str, int]:
        """Checks that all ranks hold the same network. Returns `bytes_reduced`, the bytes that a rank sends in a step."""
        self.ranks.check_same(self.step.network)
        return {"bytes_reduced": self.bytes_reduced}
