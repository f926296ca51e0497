"""A rank's part of a training: its share of every batch, one reduction a step, and stopping together."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnn_exp.data.dataset import Dataset
from bnn_exp.training.distributed.batch_norm import synchronize
from bnn_exp.training.distributed.gradients import SEND
from bnn_exp.training.distributed.ranks import Ranks, share, voters
from bnn_exp.training.trainer import Trainer


class RankTrainer(Trainer):
    """A Trainer that does, with its peers, the steps that one alone would do with the whole batches.

    Losses, right answers and the wish to stop travel with the gradients, so every rank knows those of the whole batch,
    and its state is a state that any number of ranks can take up.
    """

    def __init__(self, settings, network: nn.Module, data: Dataset, ranks: Ranks):
        super().__init__(settings, network, data)
        self.ranks, self.send = ranks, SEND[settings.engine.all_reduce]
        self.bits = [p for p in self.binary.tensors() if p.requires_grad]
        binary = {id(p) for p in self.bits}
        self.reals = [p for p in network.parameters() if id(p) not in binary and p.requires_grad]
        if settings.engine.sync_batch_norm:
            synchronize(network, ranks)

    def epoch(self, stop: Callable[[], bool] = lambda: False, tick: Callable[[int], None] = lambda batch: None) -> dict | None:
        """As Trainer.epoch, in step with all ranks: where `stop` says so on one, all end after the same batch.

        The metrics have one more: `bytes_reduced`, which a rank hands over to be reduced in a step.

        Raises:
            RankLost: another rank has ended.
        """
        self.asked = stop
        self.stopping = self.ranks.any(stop())
        metrics = super().epoch(lambda: self.stopping, tick)
        if metrics is None:
            return None
        self.ranks.check_same(self.network)
        return metrics | {"bytes_reduced": self.bytes_reduced}

    def train_on(self, epoch: int, batch: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        size = len(rows)
        x, labels = self._batch(epoch, batch, rows, share(size, self.ranks.rank, self.ranks.size))
        loss, logits = self.predict(x, labels)
        loss = loss * (len(labels) / size) if len(labels) else logits.sum()  # the sum of nothing: 0
        self.network.zero_grad()
        loss.backward()
        correct = (logits.detach().argmax(1) == labels).sum()
        scalars = torch.stack([loss.detach(), correct.to(loss.dtype), torch.full_like(loss, self.asked())])
        scalars, self.bytes_reduced = self.send(self.ranks, self.bits, self.reals, scalars, voters(size, self.ranks.size))
        self.update()
        self.stopping = bool(scalars[2] > 0)
        return scalars[0].clone(), scalars[1].long()
