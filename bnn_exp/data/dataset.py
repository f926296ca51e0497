"""The tensors of a training: uint8 images and labels on the device. An epoch is one random permutation of the train rows."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.draws import Purpose, generator
from bnn_exp.data.arrays import Arrays
from bnn_exp.nn import device
from bnn_exp.nn.operators import operator

_SUBSET, _VALIDATION, _EVALUATED = 2, 3, 4  # fixed seeds of random choices: every run chooses the same rows


@operator(
    "(Tensor order, Tensor begin, int count) -> Tensor",
    kernels="bnn_exp.data.cuda.gather:rows_from",
    launches=1,
    fake=lambda order, begin, count: order.new_empty(count),
)
def rows_from(order: Tensor, begin: Tensor, count: int) -> Tensor:
    """Returns `count` numbers of `order`, int64, from the place `begin` on. `begin` is an int64 scalar on the device."""
    return order.index_select(0, torch.arange(count, device=order.device) + begin)


@operator(
    "(Tensor images, Tensor labels, Tensor rows) -> (Tensor, Tensor)",
    kernels="bnn_exp.data.cuda.gather:gathered",
    launches=1,
    fake=lambda images, labels, rows: (images.new_empty(len(rows), *images.shape[1:]), labels.new_empty(len(rows))),
)
def gathered(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the images, uint8 [rows, channels, height, width], and the labels, int64, of the rows `rows`, int64."""
    return images.index_select(0, rows), labels.index_select(0, rows)


@dataclass(frozen=True)
class Split:
    """The images (uint8 [rows, channels, height, width]) and labels (int64 [rows]) of one split, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pixels (uint8) and the labels (int64) of the rows with the indices `rows`, an integer tensor."""
        if not device.on_host(rows) and self.images.is_contiguous():
            return gathered(self.images, self.labels, rows)
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)


@dataclass(frozen=True)
class Dataset:
    """The splits of a dataset on the device, its class names, and the statistics of its pixels.

    `mean` and `std` are per channel, of pixels/255, over all train rows, even if the training uses fewer rows. `key`
    identifies the content of the dataset.
    """

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
        where: torch.device,
        limit: int | None = None,
        validation: float = 0.0,
        limit_eval: int | None = None,
    ) -> "Dataset":
        """Returns the dataset on the device `where`. The choice of rows is random, but equal in every run.

        Args:
            limit: the number of train rows to use, chosen at random, because a dataset may be sorted by class; None for all.
            validation: the fraction of the used train rows that becomes the validation split, taken from every class alike. 0
                keeps the validation split of the dataset, if any.
            limit_eval: the number of test rows, and also of validation rows, to use; None for all.
        """
        rows = some_rows(len(arrays.train_labels), limit, _SUBSET)
        kept_back = stratified(arrays.train_labels[rows], validation)

        def split(images: np.ndarray, labels: np.ndarray) -> Split:
            return Split(torch.from_numpy(images).to(where), torch.from_numpy(labels).to(where))

        def train_rows(which: np.ndarray) -> Split:
            every = len(which) == len(arrays.train_labels)  # if all rows are chosen, they need no copy
            return split(*(a if every else a[which] for a in (arrays.train_images, arrays.train_labels)))

        def evaluated(whole: Split) -> Split:
            if limit_eval is None or limit_eval >= len(whole):
                return whole
            chosen = torch.from_numpy(some_rows(len(whole), limit_eval, _EVALUATED)).to(where)
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
        """The shape of one image: (channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def some_rows(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Returns the indices of `limit` random rows (None: all) out of `count`, int64, ascending. Equal seeds give equal rows."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def stratified(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Returns a mask, bool [rows], of ⌊fraction · rows⌋ random rows. `labels` are the labels of all rows.

    Each class contributes `fraction` of its rows, to within one row. The choice is equal in every run.
    """
    order = np.random.default_rng(_VALIDATION).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # sorted by class, in random order within a class
    chosen = np.zeros(len(labels), bool)
    chosen[order] = np.diff(np.floor(np.arange(len(labels) + 1) * fraction + 1e-9)) > 0  # rows at even distances in `order`
    return chosen


def epoch_order(rows: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """Returns the row numbers of an epoch in the order of training: a random permutation, int64 [rows].

    The permutation depends on (seed, epoch) alone. The batches of the epoch are its `pieces`.
    """
    return torch.randperm(rows, generator=generator(device, Purpose.PERMUTATION, seed, epoch), device=device)


def pieces(rows: Tensor, size: int) -> list[Tensor]:
    """Returns the pieces of `size` elements of the tensor `rows`. A single row at the end joins the last piece, because
    BatchNorm cannot take one sample."""
    return list(rows.tensor_split([size * i for i in range(1, piece_count(len(rows), size))]))


def piece_count(rows: int, size: int) -> int:
    """Returns the number of pieces that `pieces` makes of `rows` rows."""
    count = -(-rows // size)
    return count - 1 if count > 1 and rows % size == 1 else count
