"""A dataset as tensors on the device of the training: uint8 images, decoded once; an epoch is one permutation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnn_exp.data.sources import Arrays
from bnn_exp.randomness import generator

_PERMUTATION, _SUBSET = 1, 2  # what a key of randomness is for


@dataclass(frozen=True)
class Split:
    """Images uint8 [rows, channels, height, width] and labels int64 [rows], on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Those rows (int64): pixels, uint8, and labels."""
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)


@dataclass(frozen=True)
class Dataset:
    """Train and test rows, the names of the classes, and the key of what they were made from."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    key: str

    @classmethod
    def from_arrays(cls, arrays: Arrays, device: torch.device, limit: int | None = None) -> "Dataset":
        """`limit` keeps that many train rows: the same random ones each time, since a dataset may be sorted by class."""
        keep = slice(None)
        if limit is not None and limit < len(arrays.train_labels):
            keep = np.sort(np.random.default_rng(_SUBSET).permutation(len(arrays.train_labels))[:limit])

        def split(images: np.ndarray, labels: np.ndarray) -> Split:
            return Split(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))

        train = split(arrays.train_images[keep], arrays.train_labels[keep])
        return cls(train, split(arrays.test_images, arrays.test_labels), arrays.classes, arrays.key)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return tuple(self.train.images.shape[1:])


def epoch_batches(rows: int, batch_size: int, seed: int, epoch: int, device: torch.device) -> list[Tensor]:
    """The rows of each batch of an epoch: one permutation, from (seed, epoch) alone, cut into pieces."""
    order = torch.randperm(rows, generator=generator(device, seed, _PERMUTATION, epoch), device=device)
    return pieces(order, batch_size)


def pieces(rows: Tensor, size: int) -> list[Tensor]:
    """`rows` cut into pieces of `size`; a single row left over joins the last piece, since BatchNorm can't take one sample."""
    cut = list(rows.split(size))
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2:] = [torch.cat(cut[-2:])]
    return cut
