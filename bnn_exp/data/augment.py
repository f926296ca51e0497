"""Random changes of the train images in every epoch: shifts, mirror images, and black squares (cutout)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import draws
from bnn_exp.bits.draws import Purpose, generator
from bnn_exp.bits.philox import Philox, integers
from bnn_exp.nn.operators import operator


@dataclass(frozen=True)
class Augment:
    """A random change of image batches on their device. All random draws follow from (seed, epoch, batch number) alone.

    Args:
        shift: the largest shift in pixels. Each image moves by -shift…shift pixels down and across, uniformly. Black pixels
            fill the gap.
        flip: mirrors each image left to right with probability ½.
        cutout: the side in pixels of a black square; 0 for none. The centre is uniform over the pixels, so the square may
            extend over the edge (DeVries & Taylor 2017, Improved Regularization of Convolutional Neural Networks with Cutout).
    """

    seed: int
    shift: int = 0
    flip: bool = False
    cutout: int = 0

    @property
    def varies(self) -> bool:
        """True if a call can change images."""
        return bool(self.flip or self.shift or self.cutout)

    def __call__(
        self,
        x: Tensor,
        epoch: int,
        batch: int,
        share: slice = slice(None),
        of: int | None = None,
        number: Tensor | None = None,
    ) -> Tensor:
        """Returns changed pixels, uint8 [batch, channels, height, width]. Returns `x` itself if nothing varies, and never
        writes to `x`.

        Args:
            x: pixels, uint8 [batch, channels, height, width].
            epoch, batch: the numbers of the epoch and of the batch in it.
            share: the rows of the whole batch that `x` holds. These rows change as they would in the whole batch.
            of: the number of rows of the whole batch; None if `x` is the whole batch.
            number: int64 scalar on the GPU that stands for epoch and batch. The replay of a CUDA graph reads it, so each replay
                draws anew.
        """
        if not self.varies:
            return x
        rows = len(x) if of is None else of
        if number is None:
            g = generator(x.device, Purpose.AUGMENTATION, self.seed, epoch, batch)
            return varied(x, lambda n: integers(n, rows, g, x.device)[share], self.shift, self.flip, self.cutout)
        key = draws.number(Purpose.AUGMENTATION, self.seed) >> 1
        begin, _, _ = share.indices(rows)
        return varied_by_philox(x.contiguous(), number, key, begin, rows, self.shift, self.flip, self.cutout)


def build(settings: Any, seed: int, image_shape: tuple[int, int, int]) -> Augment:
    """Returns the augmentation that the settings of a dataset request.

    Args:
        settings: the `dataset` group of the configuration. With `shift=null`, images shift by up to an eighth of the smaller
            side.
        image_shape: (channels, height, width).
    """
    if settings.augment == "none":
        return Augment(seed)
    shift = min(image_shape[1:]) // 8 if settings.shift is None else settings.shift
    return Augment(seed, shift, settings.flip, settings.cutout)


@operator(
    "(Tensor x, Tensor number, int key, int begin, int rows, int shift, bool flip, int cutout) -> Tensor",
    kernels="bnn_exp.data.cuda.augment:varied_by_philox",
    launches=1,
    fake=lambda x, *_: torch.empty_like(x),
)
def varied_by_philox(x: Tensor, number: Tensor, key: int, begin: int, rows: int, shift: int, flip: bool, cutout: int) -> Tensor:
    """Returns images changed as `Augment` describes, by the random numbers of `Philox(key, number)`.

    Args:
        x: pixels, uint8 [batch, channels, height, width], contiguous: the rows from `begin` on of a batch of `rows` images.
    """
    generator = Philox(key, number)
    share = slice(begin, begin + len(x))
    return varied(x, lambda n: integers(n, rows, generator, x.device)[share], shift, flip, cutout)


def varied(x: Tensor, draw: Callable[[int], Tensor], shift: int, flip: bool, cutout: int) -> Tensor:
    """Returns mirrored, shifted and partly black images.

    Args:
        draw: returns a random integer from 0 to n − 1 for each image, int64 [batch].
    """
    if flip:
        x = torch.where(draw(2).bool()[:, None, None, None], x.flip(3), x)
    if shift:
        x = _windows(F.pad(x, [shift] * 4), (x.shape[2], x.shape[3]), *(draw(2 * shift + 1) for _ in "yx"))
    if cutout:
        down, across = (_within(side, draw(side) - cutout // 2, cutout) for side in x.shape[2:])
        x = x.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0)
    return x


def _windows(x: Tensor, size: tuple[int, int], tops: Tensor, lefts: Tensor) -> Tensor:
    """Returns a window of each image in `x`. `size` is (height, width) of the windows; `tops` and `lefts` (int64 [batch]) are
    the top left corners."""
    views = x.unfold(2, size[0], 1).unfold(3, size[1], 1)  # a view, no copy: [batch, channels, tops, lefts, height, width]
    return views[torch.arange(len(x), device=x.device), :, tops, lefts]


def _within(side: int, first: Tensor, length: int) -> Tensor:
    """Returns a mask, bool [batch, side]: True at the positions `first` … `first + length - 1` of each row."""
    offset = torch.arange(side, device=first.device) - first[:, None]
    return (offset >= 0) & (offset < length)
