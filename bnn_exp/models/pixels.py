"""The base class of networks for images, which standardises pixels by whole numbers near their mean and deviation."""

from collections.abc import Sequence
from math import log2
from statistics import fmean

import torch
from torch import Tensor, nn

from bnn_exp.nn.function import in_bf16, needs_torch, transforming
from bnn_exp.nn.operators import operator


@operator(
    "(Tensor pixels, Tensor mean, Tensor std, ScalarType dtype) -> Tensor",
    kernels="bnn_exp.nn.cuda.pixels:standardize_pixels",
    launches=1,
    fake=lambda pixels, mean, std, dtype: torch.empty_like(pixels, dtype=dtype, memory_format=torch.channels_last),
)
def standardize_pixels(pixels: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns (pixels − 255 · mean) / (255 · std) as `dtype`, channels-last.

    Args:
        pixels: uint8 [batch, channels, height, width], contiguous.
        mean, std: float32 [channels, 1, 1].
    """
    out = torch.empty_like(pixels, dtype=dtype, memory_format=torch.channels_last)
    return out.copy_((pixels - 255 * mean) / (255 * std))


def whole_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], float]:
    """Returns the statistics by which a network standardises: m/255 for each channel, and 2ᵏ/255 for all channels.

    m is the whole number nearest to 255 · mean. 2ᵏ is the power of two, at least 1, whose logarithm is nearest to that of 255
    times the mean of `std`. So standardised pixels (x − m) / 2ᵏ are exact in float32 and bfloat16, and their sums are exact in
    float32. A std of 0 counts as 1.
    """
    spread = 255 * fmean(number or 1.0 for number in std)
    return [round(255 * number) / 255 for number in mean], 2 ** max(0, round(log2(spread))) / 255


class OfPixels(nn.Module):
    """A network whose input is pixels [batch, channels, height, width]: uint8, or numbers from 0 to 1."""

    def keep_statistics(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Stores statistics near `mean` and `std`, each one number for all channels or one for each (`whole_statistics`)."""
        means, spread = whole_statistics(mean, std)
        for name, numbers in (("mean", means), ("std", [spread])):
            self.register_buffer(name, torch.tensor(numbers).expand(channels).reshape(-1, 1, 1).clone())

    @property
    def pixel_step(self) -> Tensor:
        """The step 2⁻ᵏ between two neighbouring numbers of standardised pixels, without dimensions."""
        return (1 / (255 * self.std)).flatten()[0]

    def standardized(self, x: Tensor) -> Tensor:
        """Returns pixels with a mean near 0 and a standard deviation near 1, in the memory format channels_last.

        Pixels of dtype uint8 are returned as bfloat16 under autocast to bfloat16. On a GPU they take one kernel.
        """
        if x.dtype == torch.uint8 and not needs_torch(x):
            dtype = torch.bfloat16 if in_bf16(x) else self.mean.dtype
            return standardize_pixels(x.contiguous(), self.mean, self.std, dtype)
        x = x if x.dtype == torch.uint8 else 255 * x
        x = (x - 255 * self.mean) / (255 * self.std)
        # Under vmap a tensor has no memory format.
        return x if transforming() else x.contiguous(memory_format=torch.channels_last)
