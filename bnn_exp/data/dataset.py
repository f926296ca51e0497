"""A dataset as tensors on the device of the training: uint8 images, decoded once; an epoch is one permutation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.draws import Purpose, generator
from bnn_exp.data.arrays import Arrays

_SUBSET, _VALIDATION, _EVALUATED = 2, 3, 4  # seeds of the choices of rows, which are the same in every run


@dataclass(frozen=True)
class Split:
    """Images uint8 [rows, channels, height, width] and labels int64 [rows], on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns pixels, uint8, and labels of these rows (int64)."""
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)


@dataclass(frozen=True)
class Dataset:
    """Train and test rows, perhaps some kept back from training, the names of the classes, mean and standard deviation of
    each channel (of pixels/255, over all train rows there are), and the key of what all was made from."""

    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    key: str

    @classmethod
    def from_arrays(
        cls,
        arrays: Arrays,
        device: torch.device,
        limit: int | None = None,
        validation: float = 0.0,
        limit_eval: int | None = None,
    ) -> "Dataset":
        """`limit` uses that many train rows: the same random ones each time, since a dataset may be sorted by class.
        `validation` is the fraction of those that is kept back, of every class alike; it too is always the same. A validation
        split of the dataset itself is used as it is. `limit_eval` uses that many rows of test and of validation, likewise."""
        rows = some_rows(len(arrays.train_labels), limit, _SUBSET)
        kept_back = stratified(arrays.train_labels[rows], validation)

        def split(images: np.ndarray, labels: np.ndarray) -> Split:
            return Split(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))

        def train_rows(which: np.ndarray) -> Split:
            every = len(which) == len(arrays.train_labels)  # then nothing is copied
            return split(*(a if every else a[which] for a in (arrays.train_images, arrays.train_labels)))

        def evaluated(whole: Split) -> Split:
            if limit_eval is None or limit_eval >= len(whole):
                return whole
            chosen = torch.from_numpy(some_rows(len(whole), limit_eval, _EVALUATED)).to(device)
            return Split(*whole.batch(chosen))

        own = None if arrays.validation_images is None else split(arrays.validation_images, arrays.validation_labels)
        kept = train_rows(rows[kept_back]) if validation else own
        return cls(
            train_rows(rows[~kept_back]),
            None if kept is None else evaluated(kept),
            evaluated(split(arrays.test_images, arrays.test_labels)),
            arrays.classes,
            arrays.mean,
            arrays.std,
            arrays.key,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def some_rows(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Returns the indices of at most `limit` rows of `count`, random but the same each time, ascending: int64."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def stratified(labels: np.ndarray, fraction: float) -> np.ndarray:
    """A random choice of ⌊fraction · rows⌋ rows, of every class its share to within one: bool [rows], the same each time."""
    order = np.random.default_rng(_VALIDATION).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, at random within one
    chosen = np.zeros(len(labels), bool)
    chosen[order] = np.diff(np.floor(np.arange(len(labels) + 1) * fraction + 1e-9)) > 0  # evenly spaced
    return chosen


def epoch_batches(rows: int, batch_size: int, seed: int, epoch: int, device: torch.device) -> list[Tensor]:
    """The rows of each batch of an epoch: one permutation, from (seed, epoch) alone, cut into pieces."""
    order = torch.randperm(rows, generator=generator(device, Purpose.PERMUTATION, seed, epoch), device=device)
    return pieces(order, batch_size)


def pieces(rows: Tensor, size: int) -> list[Tensor]:
    """`rows` cut into pieces of `size`; a single row left over joins the last piece, since BatchNorm can't take one sample."""
    return list(rows.tensor_split([size * i for i in range(1, piece_count(len(rows), size))]))


def piece_count(rows: int, size: int) -> int:
    """How many pieces that are."""
    count = -(-rows // size)
    return count - 1 if count > 1 and rows % size == 1 else count
