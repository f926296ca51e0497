"""Binary normalised layers: the convolution BNCVL and its dense counterpart (Cabral et al., arXiv 2509.07025)."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.nn.binary import quantize
from bnn_exp.nn.function import takes_kernels
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.layers import BinaryLayer
from bnn_exp.nn.normalization import normalized
from bnn_exp.nn.product import linear
from bnn_exp.nn.standardize import Standardize

NORMALIZATIONS = ("sample", "batch", "channel")


class _BinaryNormalized(BinaryLayer):
    def __init__(self, shape: tuple[int, ...], activation: Any, encoding: str, weights: str, norm: nn.Module):
        # A norm per channel subtracts the mean of the channel, so a bias would have no effect.
        super().__init__(shape, encoding, weights, bias=isinstance(norm, Standardize) and norm.dims != (2, 3))
        self.norm, self.activation = norm, activation

    @staticmethod
    def quantize(x: Tensor) -> Tensor:
        """Returns the bits of `x`: 1 above its mean, else 0."""
        return quantize(x)


@exact
class BNCVL(_BinaryNormalized):
    """A layer activation(normalise(conv(x))) of binary weights: [batch, in, H, W] → [batch, out, H, W], zero-padded.

    With `pool` the layer max-pools the activations: [batch, in, H, W] → [batch, out, H // pool, W // pool].

    The default arguments give the layer of the reference program: latent weights ~ N(0, 1), bias 0, boolean bits by the mean,
    straight-through gradient, normalised over (C, H, W) of each sample.

    Under bf16 autocast the inputs are rounded to bfloat16, products with ±½ and ±1 are exact, sums are added up in float32, and
    the convolution's output is rounded to bfloat16. On a GPU the normalisation computes in float32.

    Args:
        kernel_size: odd.
        activation: applied to the normalised numbers. None: ReLU. `nn.Identity()`: no activation.
        normalization: `sample` normalises over (C, H, W) of each sample. `channel` normalises over (H, W) of each channel of
            each sample. `batch` is BatchNorm, with a real scale and shift for each channel. With `channel` and `batch` the
            layer has no bias, because the normalisation would subtract the bias.
        pool: the side of the windows by which the activations are max-pooled. 1: no pooling.

    Raises:
        ValueError: `kernel_size` is even, or an encoding, a normalisation or a kind of weights is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        activation: Callable[[Tensor], Tensor] | None = None,
        encoding: str = "boolean",
        normalization: str = "sample",
        weights: str = "latent",
        pool: int = 1,
    ):
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: must be odd")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization={normalization!r}: must be one of {', '.join(NORMALIZATIONS)}")
        norms = {
            "sample": lambda: Standardize((1, 2, 3)),
            "channel": lambda: Standardize((2, 3)),
            "batch": lambda: nn.BatchNorm2d(out_channels),
        }
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        super().__init__(shape, activation or nn.ReLU(), encoding, weights, norms[normalization]())
        self.in_channels, self.out_channels, self.kernel_size, self.pool = in_channels, out_channels, kernel_size, pool

    def forward(self, x: Tensor) -> Tensor:
        return normalized(self.norm, self.activation, self._convolved(x, self.value), self.pool)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, encoding={self.encoding}, weights={self.weights}"


@exact
class BinaryNormalizedLinear(_BinaryNormalized):
    """A layer activation(normalise(x Vᵀ + b)) of binary V and b: [batch, in_features] → [batch, out_features].

    Args:
        activation: applied to the normalised numbers. None: ReLU.
        normalization: `sample` normalises over the features of each sample. `batch` is BatchNorm; the layer then has no bias.

    Raises:
        ValueError: an encoding, a normalisation or a kind of weights is unknown.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Callable[[Tensor], Tensor] | None = None,
        encoding: str = "boolean",
        normalization: str = "sample",
        weights: str = "latent",
    ):
        if normalization not in ("sample", "batch"):
            raise ValueError(f"normalization={normalization!r}: must be one of sample, batch")
        norm = Standardize((1,)) if normalization == "sample" else nn.BatchNorm1d(out_features)
        super().__init__((out_features, in_features), activation or nn.ReLU(), encoding, weights, norm)

    def forward(self, x: Tensor) -> Tensor:
        return normalized(self.norm, self.activation, self._sums(x))

    def _sums(self, x: Tensor) -> Tensor:
        if self.weights == "float" or not takes_kernels(x):
            return F.linear(x, self.value, self.bias_value)
        sums, bias = linear(x, self.weight, self.value), self.bias_value
        return sums if bias is None else sums + bias
