"""The BNCVL network: blocks of binary normalised convolutions, pooled, and dense layers of the same kind (arXiv 2509.07025)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.models.pixels import OfPixels
from bnn_exp.nn.bncvl import BNCVL, BinaryNormalizedLinear
from bnn_exp.nn.exact import exact


@exact
class BNCVLNet(OfPixels):
    """`convolutions` BNCVL layers at each width of `channels`, max-pooling between the widths, the mean over the image,
    dense layers of `dense` features, and one of `num_classes` without activation.

    Args:
        image_shape: (channels, height, width) of the images.
        pool: side and stride of the max-pooling between two widths.
        normalization: `sample`, `batch` or `channel`; dense layers take `sample` for `channel`.
        encoding, weights: see `bnn_exp.nn.BinaryLayer`.
        latent_std: of the first latents: `one`, as the seed, or `fan_in`: 1/√(inputs of an output).
        mean, std: per channel, of the pixels as numbers from 0 to 1: what the input is standardised by. A std of 0 counts as 1.

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
        self.pool, self.depth = pool, convolutions
        kind = {"encoding": encoding, "weights": weights}
        self.convolutions, self.dense = nn.ModuleList(), nn.ModuleList()
        for width in channels:
            for _ in range(convolutions):
                self.convolutions.append(BNCVL(inputs, width, kernel_size, normalization=normalization, **kind))
                inputs = width
        normalization = "batch" if normalization == "batch" else "sample"
        for width in (*dense, num_classes):
            last = nn.Identity() if len(self.dense) == len(dense) else None
            self.dense.append(BinaryNormalizedLinear(inputs, width, last, normalization=normalization, **kind))
            inputs = width
        if weights == "latent" and latent_std == "fan_in":
            for layer in (*self.convolutions, *self.dense):
                layer.weight.data /= layer.weight[0].numel() ** 0.5
        self.keep_statistics(image_shape[0], mean, std)

    def stages(self) -> list[list[nn.Module]]:
        """Layer by layer, the modules that hold its parameters."""
        return [[layer] for layer in (*self.convolutions, *self.dense)]

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (uint8, or numbers from 0 to 1), [batch, channels, height, width] → logits [batch, num_classes]."""
        h = self.standardized(x)
        for i, convolution in enumerate(self.convolutions):
            if i and i % self.depth == 0:
                h = F.max_pool2d(h, self.pool)
            h = convolution(h)
        h = h.mean((2, 3))
        for layer in self.dense:
            h = layer(h)
        return h
