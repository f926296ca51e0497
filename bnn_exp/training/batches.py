"""The batches of a training: the images and labels of chosen samples, on the device, augmented."""

import torch
from torch import Tensor

from bnn_exp.config.settings import Settings
from bnn_exp.data import augment
from bnn_exp.data.dataset import Dataset, epoch_batches, piece_count
from bnn_exp.nn import device


class Batches:
    """The batches of every epoch of a training.

    A training step calls the object with the indices of its samples. Augmentation draws its random numbers from (seed, epoch,
    batch), so the caller calls `move_to` before each step.
    """

    def __init__(self, settings: Settings, data: Dataset):
        self.settings, self.split = settings, data.train
        self.device = data.train.labels.device
        self.augment = augment.build(settings.dataset, settings.seed, data.image_shape)
        self.position = 0, 0  # epoch and batch, both counted from 0
        self.number: Tensor | None = None  # the position as an int64 scalar on a GPU, epoch · 2³² + batch

    def __call__(self, rows: Tensor, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Returns the images and labels of the part `share` of the samples `rows`, int64 indices on the device.

        Augmentation does not depend on how ranks divide a batch: a share has the same images as in the whole batch.
        """
        x, labels = self.split.batch(rows[share])
        return self.augment(x, *self.position, share, len(rows), self.number), labels

    def move_to(self, epoch: int, batch: int) -> None:
        """Sets the position: the coming step trains on batch `batch` of epoch `epoch`. Both numbers count from 0."""
        self.position = epoch, batch
        if self.augment.varies and not device.on_host(self.split.labels):
            if self.number is None:
                self.number = torch.empty((), dtype=torch.int64, device=self.device)
            self.number.fill_((epoch << 32) + batch)

    def of_epoch(self, epoch: int) -> list[Tensor]:
        """Returns the sample indices of each batch of an epoch, int64 on the device: pieces of one permutation."""
        rows = epoch_batches(len(self.split), self.size(epoch), self.settings.seed, epoch, self.device)
        return rows[: self.settings.trainer.limit_batches]

    def count(self, epoch: int) -> int:
        """Returns the number of batches of an epoch."""
        count = piece_count(len(self.split), self.size(epoch))
        return min(count, self.settings.trainer.limit_batches or count)

    def size(self, epoch: int) -> int:
        """Returns the batch size of an epoch. It grows geometrically over the epochs from batch_size to final_batch_size."""
        trainer = self.settings.trainer
        growth = (trainer.final_batch_size or trainer.batch_size) / trainer.batch_size
        return round(trainer.batch_size * growth ** (epoch / max(trainer.epochs - 1, 1)))

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the first `count` images of the first epoch, augmented as in training, and their labels."""
        self.move_to(0, 0)
        return self(torch.cat(self.of_epoch(0))[:count])
