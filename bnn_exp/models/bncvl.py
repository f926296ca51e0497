"""The BNCVL network: blocks of binary normalised convolutions with pooling, then dense layers (arXiv 2509.07025)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bnn_exp.models.pixels import OfPixels
from bnn_exp.nn.bncvl import BNCVL, BinaryNormalizedLinear
from bnn_exp.nn.function import is_compiled, takes_kernels
from bnn_exp.nn.known_classes import exact


@exact
class BNCVLNet(OfPixels):
    """A CNN with `convolutions` BNCVL layers at each width of `channels`, and max-pooling between the widths.

    The mean over the image follows, then dense layers of `dense` features, and one of `num_classes` without activation.

    Args:
        image_shape: (channels, height, width) of the images.
        pool: the side and the stride of the pooling windows.
        normalization: `sample`, `batch` or `channel`, see `bnn_exp.nn.BNCVL`. With `channel`, dense layers use `sample`.
        encoding, weights: see `bnn_exp.nn.BinaryLayer`.
        latent_std: the standard deviation of new latent weights: `one`, as in the reference program, or `fan_in`, 1/√fan-in.
        mean, std: the statistics of the pixels per channel, as numbers from 0 to 1. The network standardises its input by
            these statistics. A std of 0 counts as 1.

    Raises:
        ValueError: the images are too small for the pooling.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: Sequence[int] = (16, 32, 64),
        convolutions: int = 2,
        kernel_size: int = 3,
        pool: int = 2,
        dense: Sequence[int] = (256,),
        encoding: str = "centred",
        normalization: str = "batch",
        weights: str = "latent",
        latent_std: str = "one",
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ):
        super().__init__()
        inputs, *side = image_shape
        if min(side) // pool ** (len(channels) - 1) < 1:
            raise ValueError(
                f"images of {side[1]}×{side[0]} pixels are too small to be pooled {len(channels) - 1} times by {pool}"
            )
        self.image_shape, self.pool, self.per_width = image_shape, pool, convolutions
        kind: dict[str, Any] = {"encoding": encoding, "weights": weights}
        self.convolutions, self.dense = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(channels, 1):
            for j in range(1, convolutions + 1):
                last = j == convolutions and i < len(channels)  # of a width that another width follows
                layer = BNCVL(inputs, width, kernel_size, normalization=normalization, pool=pool if last else 1, **kind)
                self.convolutions.append(layer)
                inputs = width
        normalization = "batch" if normalization == "batch" else "sample"
        for width in (*dense, num_classes):
            activation = nn.Identity() if len(self.dense) == len(dense) else None
            self.dense.append(BinaryNormalizedLinear(inputs, width, activation, normalization=normalization, **kind))
            inputs = width
        if weights == "latent" and latent_std == "fan_in":
            for layer in (*self.convolutions, *self.dense):
                layer.weight.data /= layer.weight[0].numel() ** 0.5
        self.keep_statistics(image_shape[0], mean, std)

    def stages(self) -> list[list[nn.Module]]:
        """Returns the modules that hold parameters, a list for each layer."""
        return [[layer] for layer in (*self.convolutions, *self.dense)]

    def suitable_shape(self) -> tuple[int, int, int]:
        """Returns a shape (channels, height, width) of small images that the network can pool."""
        first: Any = self.convolutions[0]
        poolings = (len(self.convolutions) - 1) // self.per_width
        side = max(8, self.pool**poolings)
        return first.in_channels, side, side

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits [batch, num_classes] of pixels [batch, channels, height, width]: uint8, or numbers from 0 to 1."""
        h = self.standardized(x)
        for convolution in self.convolutions:
            h = convolution(h)
        # In this order of dimensions the gradient is channels-last, as the kernels of BatchNorm read it.
        h = h.permute(0, 2, 3, 1).mean((1, 2)) if takes_kernels(h) or is_compiled(h) else h.mean((2, 3))
        for layer in self.dense:
            h = layer(h)
        return h
