"""VGG-small with one-bit weights and activations, a common network for CIFAR-10 (Helwegen et al. 2019, arXiv 1906.02107).

In the paper the first and the last layer have real weights. Here all weights are bits.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bnn_exp.models.pixels import OfPixels
from bnn_exp.nn import Binarize, BinaryConv2d, BinaryLinear, normalized
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.pooling import max_pool


@exact
class VGG(OfPixels):
    """A CNN with `convolutions` binary convolutions at each width of `channels`, then one binary linear layer.

    BatchNorm follows every layer. A binary activation follows the BatchNorm of every convolution. The last convolution of each
    width is max-pooled 2×2 before its BatchNorm.

    Args:
        image_shape: (channels, height, width) of the images.
        window: the straight-through gradient of the activation passes where |x| ≤ window. None: everywhere.
        encoding: the encoding of weights and activations.
        weights: `bits`, `latent` or `float`, see `bnn_exp.nn.BinaryLayer`.
        mean, std: the statistics of the pixels per channel, as numbers from 0 to 1. The network standardises its input by
            these statistics. A std of 0 counts as 1.

    Raises:
        ValueError: the images are too small for the pooling.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: Sequence[int] = (128, 256, 512),
        convolutions: int = 2,
        kernel_size: int = 3,
        encoding: str = "bipolar",
        window: float | None = 1.0,
        weights: str = "bits",
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ):
        super().__init__()
        inputs, *side = image_shape
        height, width = (n // 2 ** len(channels) for n in side)
        if min(height, width) < 1:
            raise ValueError(f"images of {side[1]}×{side[0]} pixels are too small to be pooled {len(channels)} times by 2")
        self.image_shape, self.per_width, self.encoding, self.window = image_shape, convolutions, encoding, window
        kind: dict[str, Any] = {"encoding": encoding, "weights": weights}
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for outputs in channels:
            for _ in range(convolutions):
                self.convolutions.append(BinaryConv2d(inputs, outputs, kernel_size, **kind))
                self.norms.append(nn.BatchNorm2d(outputs))
                inputs = outputs
        self.last = BinaryLinear(inputs * height * width, num_classes, binary_input=True, **kind)
        self.last_norm = nn.BatchNorm1d(num_classes)
        self.keep_statistics(image_shape[0], mean, std)

    def stages(self) -> list[list[nn.Module]]:
        """Returns the modules that hold parameters, a list for each layer."""
        return [*([c, norm] for c, norm in zip(self.convolutions, self.norms, strict=True)), [self.last, self.last_norm]]

    def suitable_shape(self) -> tuple[int, int, int]:
        """Returns the shape (channels, height, width) of the images."""
        return self.image_shape

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits [batch, num_classes] of pixels [batch, channels, height, width]: uint8, or numbers from 0 to 1."""
        h, activation = self.standardized(x), Binarize(self.encoding, self.window)
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True), 1):
            h = convolution(h)
            h = max_pool(h, 2) if i % self.per_width == 0 else h
            h = normalized(norm, activation, h)
        return normalized(self.last_norm, None, self.last(h.flatten(1)))
