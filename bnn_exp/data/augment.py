"""Pictures varied anew each time they are trained on: shifted, mirrored, with a square blacked out."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import draws
from bnn_exp.bits.draws import Purpose, generator
from bnn_exp.bits.philox import Philox, integers


@dataclass(frozen=True)
class Augment:
    """Varies a batch on its device, each sample by draws of its own from (seed, epoch, batch) alone.

    shift: by -shift…shift pixels down and as many across, uniformly; black moves in.
    flip: half of the samples are mirrored left to right.
    cutout: a black square of that side, its centre uniform over the pixels, so that it may reach over the edge
        (DeVries & Taylor 2017, Improved Regularization of Convolutional Neural Networks with Cutout).
    """

    seed: int
    shift: int = 0
    flip: bool = False
    cutout: int = 0

    @property
    def varies(self) -> bool:
        """True if any image is changed."""
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
        """Returns augmented images [batch, channels, height, width], uint8 in new memory; `x` itself if nothing varies.

        Args:
            share: the images that `x` holds, of a batch of `of` images. Each becomes what it would in the whole batch.
            number: int64 scalar on a GPU that stands for epoch and batch there, so that a recorded step draws anew.
        """
        if not self.varies:
            return x
        if number is None:
            g = generator(x.device, Purpose.AUGMENTATION, self.seed, epoch, batch)
        else:
            g = Philox(draws.number(Purpose.AUGMENTATION, self.seed) >> 1, number)

        def draw(n: int) -> Tensor:
            """Returns an integer in 0 … n − 1 for each sample, int64 [samples]."""
            return integers(n, len(x) if of is None else of, g, x.device)[share]

        if self.flip:
            x = torch.where(draw(2).bool()[:, None, None, None], x.flip(3), x)
        if self.shift:
            x = _windows(F.pad(x, [self.shift] * 4), (x.shape[2], x.shape[3]), *(draw(2 * self.shift + 1) for _ in "yx"))
        if self.cutout:
            down, across = (_within(side, draw(side) - self.cutout // 2, self.cutout) for side in x.shape[2:])
            x = x.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0)
        return x


def build(settings: Any, seed: int, image_shape: tuple[int, int, int]) -> Augment:
    """What `settings` (those of a dataset) ask for; images are (channels, height, width)."""
    if settings.augment == "none":
        return Augment(seed)
    shift = min(image_shape[1:]) // 8 if settings.shift is None else settings.shift
    return Augment(seed, shift, settings.flip, settings.cutout)


def _windows(x: Tensor, size: tuple[int, int], tops: Tensor, lefts: Tensor) -> Tensor:
    """From each sample the window of `size` (height, width) with that top left corner."""
    views = x.unfold(2, size[0], 1).unfold(3, size[1], 1)  # [batch, channels, tops, lefts, height, width], no copy
    return views[torch.arange(len(x), device=x.device), :, tops, lefts]


def _within(side: int, first: Tensor, length: int) -> Tensor:
    """Which of 0…side-1 are among the `length` from `first` on: bool [batch, side]."""
    offset = torch.arange(side, device=first.device) - first[:, None]
    return (offset >= 0) & (offset < length)
