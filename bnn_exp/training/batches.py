"""The batches of a training: the images and labels of chosen samples, on the device, augmented."""

import numpy as np
import torch
from torch import Tensor

from bnn_exp.config.settings import Settings
from bnn_exp.data import augment
from bnn_exp.data.dataset import Dataset, epoch_order, piece_count, pieces, rows_from
from bnn_exp.nn import device
from bnn_exp.optim.announcement import Announcement


class Batches:
    """The batches of every epoch of a training.

    A training step calls the object with the indices of its samples. Augmentation draws its random numbers from (seed, epoch,
    batch), so the caller calls `move_to` before each step.

    On a GPU the permutation of an epoch lies in one tensor for all epochs, and the object announces the place where the
    samples of the coming step begin. A recorded step takes its samples from that place, by `chosen`.
    """

    def __init__(self, settings: Settings, data: Dataset):
        self.settings, self.split = settings, data.train
        self.device = data.train.labels.device
        self.augment = augment.build(settings.dataset, settings.seed, data.image_shape)
        self.position = 0, 0  # epoch and batch, both counted from 0
        self.announced: Tensor | None = None  # see `numbers`
        self.begin = 0  # the place in `order` where the samples of the coming step begin
        self.prepared: tuple[int, list[Tensor]] | None = None  # an epoch and its batches, see `prepare`
        if not device.on_host(self.split.labels):
            # The first half holds the permutation of the epoch, the second half samples that are no piece of the permutation.
            self.order = torch.zeros(2 * len(self.split), dtype=torch.int64, device=self.device)

    def __call__(self, rows: Tensor, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Returns the images and labels of the part `share` of the samples `rows`, int64 indices on the device.

        Augmentation does not depend on how ranks divide a batch: a share has the same images as in the whole batch.
        """
        x, labels = self.split.batch(rows[share])
        number = None if self.announced is None else self.announced[0]
        return self.augment(x, *self.position, share, len(rows), number), labels

    def move_to(self, rows: Tensor, epoch: int, batch: int) -> None:
        """Sets the position: the coming step trains on the samples `rows`, batch `batch` of epoch `epoch`.

        Args:
            rows: int64 indices on the device. A piece that `of_epoch` has returned is not copied.
            epoch, batch: both numbers count from 0.
        """
        self.position = epoch, batch
        if device.on_host(self.split.labels):
            return
        if rows.is_contiguous() and rows.untyped_storage().data_ptr() == self.order.untyped_storage().data_ptr():
            self.begin = int(rows.storage_offset())
        else:
            self.begin = len(self.split)
            self.order[self.begin : self.begin + len(rows)] = rows

    def numbers(self) -> np.ndarray | None:
        """Returns the numbers of the coming step, int64 [3]: epoch · 2³² + batch, `begin`, and the number of the batch.

        Returns None on a CPU.
        """
        epoch, batch = self.position
        return None if device.on_host(self.split.labels) else np.array([(epoch << 32) + batch, self.begin, batch])

    def chosen(self, size: int) -> Tensor:
        """Returns the indices of the `size` samples at which the announced numbers point, int64 on the GPU."""
        return rows_from(self.order, self.announced[1], size)

    @property
    def batch(self) -> int | Tensor:
        """The number of the batch of the coming step, from 0; on a GPU the announced number, an int64 scalar."""
        return self.position[1] if self.announced is None else self.announced[2]

    def of_epoch(self, epoch: int) -> list[Tensor]:
        """Returns the sample indices of each batch of an epoch, int64 on the device: pieces of one permutation.

        On a GPU the next call overwrites the tensors.
        """
        prepared, self.prepared = self.prepared, None
        if prepared and prepared[0] == epoch:
            return prepared[1]
        order = epoch_order(len(self.split), self.settings.seed, epoch, self.device)
        if not device.on_host(order):
            order = self.order[: len(order)].copy_(order)
        return pieces(order, self.size(epoch))[: self.settings.trainer.limit_batches]

    def prepare(self, epoch: int) -> None:
        """Makes the batches of the next epoch, while a GPU still computes the last steps. On a CPU nothing is made."""
        if epoch < self.settings.trainer.epochs and not device.on_host(self.split.labels):
            self.prepared = epoch, self.of_epoch(epoch)

    def count(self, epoch: int) -> int:
        """Returns the number of batches of an epoch."""
        count = piece_count(len(self.split), self.size(epoch))
        return min(count, self.settings.trainer.limit_batches or count)

    @property
    def most(self) -> int:
        """The largest number of batches of an epoch."""
        return max(self.count(epoch) for epoch in (0, self.settings.trainer.epochs - 1))

    def size(self, epoch: int) -> int:
        """Returns the batch size of an epoch. It grows geometrically over the epochs from batch_size to final_batch_size."""
        trainer = self.settings.trainer
        growth = (trainer.final_batch_size or trainer.batch_size) / trainer.batch_size
        return round(trainer.batch_size * growth ** (epoch / max(trainer.epochs - 1, 1)))

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the first `count` images of the first epoch, augmented as in training, and their labels.

        Call this method between epochs.
        """
        rows = torch.cat(self.of_epoch(0))[:count]
        self.move_to(rows, 0, 0)
        Announcement(self.device, self).send()
        return self(rows)
