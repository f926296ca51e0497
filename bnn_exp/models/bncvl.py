"""The BNCVL network: blocks of binary normalised convolutions with pooling, then dense layers (arXiv 2509.07025)."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.config.models.bncvl import MOST_POSITIONS
from bnn_exp.models.pixels import OfPixels
from bnn_exp.nn.bncvl import BNCVL, BinaryNormalizedLinear
from bnn_exp.nn.codes import FIRST_CLIP, Quantize, evaluated
from bnn_exp.nn.function import is_compiled, takes_kernels
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.requantize import average_multiplier


@exact
class ImageMean(nn.Module):
    """The mean of each channel over the image, [batch, channels, height, width] → [batch, channels], as a code or real.

    Args:
        activation_bits: 8 or 4: the layer reads and gives codes of so many bits. None: real activations.
    """

    def __init__(self, activation_bits: int | None):
        super().__init__()
        # Means are smaller than activations, so their first clip is smaller than FIRST_CLIP.
        self.quantizer = None if activation_bits is None else Quantize(activation_bits, FIRST_CLIP / 2)

    def forward(self, h: Tensor) -> Tensor:
        if self.quantizer is None:
            return _mean(h)
        if self.training:
            return self._learned(self.quantizer, h)
        return evaluated(partial(self._exact, self.quantizer, h), partial(self._learned, self.quantizer, h))

    def _learned(self, quantizer: Quantize, h: Tensor) -> Tensor:
        return quantizer(_mean(h) * (FIRST_CLIP / quantizer.levels))

    def _exact(self, quantizer: Quantize, h: Tensor) -> Tensor:
        """Returns the codes as a packed network computes them, for codes h."""
        positions = h.shape[2] * h.shape[3]
        multiplier = average_multiplier(quantizer.clip, quantizer.levels, positions, FIRST_CLIP)
        return (h.sum((2, 3), dtype=torch.float32) * multiplier).round().clamp(0, quantizer.levels).to(h.dtype)


def _mean(h: Tensor) -> Tensor:
    # In this order of dimensions the gradient is channels-last, as the kernels of BatchNorm read it.
    return h.permute(0, 2, 3, 1).mean((1, 2)) if takes_kernels(h) or is_compiled(h) else h.mean((2, 3))


@exact
class BNCVLNet(OfPixels):
    """A CNN with `convolutions` BNCVL layers at each width of `channels`, and max-pooling between the widths.

    The mean over the image follows, then dense layers of `dense` features, and one of `num_classes` without activation.

    Args:
        image_shape: (channels, height, width) of the images.
        pool: the side and the stride of the pooling windows.
        normalization: `sample`, `batch` or `channel`, see `bnn_exp.nn.BNCVL`. With `channel`, dense layers use `sample`.
        encoding, weights: see `bnn_exp.nn.BinaryLayer`.
        activation_bits: 8 or 4: the activations of all layers but the last are codes of so many bits, and the network computes
            in whole numbers in evaluation. It then needs `normalization=batch`. None: real activations.
        latent_std: the standard deviation of new latent weights: `one`, as in the reference program, or `fan_in`, 1/√fan-in.
        mean, std: the statistics of the pixels per channel, as numbers from 0 to 1. The network standardises its input by
            these statistics. A std of 0 counts as 1.

    Raises:
        ValueError: the images are too small for the pooling, or the layers can't give codes.
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
        activation_bits: int | None = None,
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
        if activation_bits and prod(n // pool ** (len(channels) - 1) for n in side) > MOST_POSITIONS:
            raise ValueError(f"activation_bits={activation_bits}: images of {side[1]}×{side[0]} pixels are too large")
        self.image_shape, self.pool, self.per_width, self.activation_bits = image_shape, pool, convolutions, activation_bits
        kind: dict[str, Any] = {"encoding": encoding, "weights": weights, "activation_bits": activation_bits}
        self.convolutions, self.mean_over_image, self.dense = nn.ModuleList(), ImageMean(activation_bits), nn.ModuleList()
        for i, width in enumerate(channels, 1):
            for j in range(1, convolutions + 1):
                last = j == convolutions and i < len(channels)  # the last layer of a width before the last width
                layer = BNCVL(inputs, width, kernel_size, normalization=normalization, pool=pool if last else 1, **kind)
                self.convolutions.append(layer)
                inputs = width
        normalization = "batch" if normalization == "batch" else "sample"
        for width in (*dense, num_classes):
            last = len(self.dense) == len(dense)
            scores: dict[str, Any] = {"activation": nn.Identity(), "activation_bits": None} if last else {}
            self.dense.append(BinaryNormalizedLinear(inputs, width, normalization=normalization, **kind | scores))
            inputs = width
        if weights == "latent" and latent_std == "fan_in":
            for layer in (*self.convolutions, *self.dense):
                layer.weight.data /= layer.weight[0].numel() ** 0.5
        self.keep_statistics(image_shape[0], mean, std)

    def stages(self) -> list[list[nn.Module]]:
        """Returns the modules that hold parameters, a list for each layer."""
        stages = [[layer] for layer in (*self.convolutions, *self.dense)]
        stages[len(self.convolutions) - 1].append(self.mean_over_image)
        return stages

    def suitable_shape(self) -> tuple[int, int, int]:
        """Returns the shape (channels, height, width) of the images."""
        return self.image_shape

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits [batch, num_classes] of pixels [batch, channels, height, width]: uint8, or numbers from 0 to 1."""
        h = self.standardized(x)
        for i, convolution in enumerate(self.convolutions):
            h = convolution(h) if i or self.activation_bits is None else convolution(h, self.pixel_step)
        h = self.mean_over_image(h)
        for layer in self.dense:
            h = layer(h)
        return h
