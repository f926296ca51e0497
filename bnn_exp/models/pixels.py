"""The base class of networks for images: it standardises pixels by the statistics of the training samples."""

from collections.abc import Sequence

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
    """Returns (pixels / 255 − mean) / std as `dtype`, channels-last.

    Args:
        pixels: uint8 [batch, channels, height, width], contiguous.
        mean, std: float32 [channels, 1, 1].
    """
    out = torch.empty_like(pixels, dtype=dtype, memory_format=torch.channels_last)
    return out.copy_((pixels / 255 - mean) / std)


class OfPixels(nn.Module):
    """A network whose input is pixels [batch, channels, height, width]: uint8, or numbers from 0 to 1."""

    def keep_statistics(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Stores `mean` and `std`, each one number for all channels or one for each channel. A std of 0 counts as 1."""
        for name, numbers in (("mean", mean), ("std", [number or 1.0 for number in std])):
            self.register_buffer(name, torch.tensor(numbers).expand(channels).reshape(-1, 1, 1).clone())

    def standardized(self, x: Tensor) -> Tensor:
        """Returns pixels with mean 0 and standard deviation 1 in each channel, in the memory format channels_last.

        Pixels of dtype uint8 are returned as bfloat16 under autocast to bfloat16. On a GPU they take one kernel.
        """
        if x.dtype == torch.uint8 and not needs_torch(x):
            dtype = torch.bfloat16 if in_bf16(x) else self.mean.dtype
            return standardize_pixels(x.contiguous(), self.mean, self.std, dtype)
        x = x / 255 if x.dtype == torch.uint8 else x
        x = (x - self.mean) / self.std
        # Under vmap a tensor has no memory format.
        return x if transforming() else x.contiguous(memory_format=torch.channels_last)
