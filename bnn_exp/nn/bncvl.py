"""Binary normalised layers: the convolution BNCVL and its dense counterpart (Cabral et al., arXiv 2509.07025)."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.config.models.bncvl import MOST_INPUTS
from bnn_exp.nn.binary import quantize
from bnn_exp.nn.codes import Quantize, evaluated
from bnn_exp.nn.function import takes_kernels
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.layers import BinaryLayer
from bnn_exp.nn.norm import exact_scale_and_shift
from bnn_exp.nn.normalization import normalized
from bnn_exp.nn.pooling import max_pool
from bnn_exp.nn.product import linear
from bnn_exp.nn.requantize import requantization_of_layer, requantize, unit
from bnn_exp.nn.standardize import Standardize

NORMALIZATIONS = ("sample", "batch", "channel")


class _BinaryNormalized(BinaryLayer):
    """A base class: a product with binary weights, a normalisation, an activation (ReLU by default), and maybe a quantiser.

    With a quantiser the layer reads and gives codes. In evaluation it computes in whole numbers, by `requantize`, as a packed
    network does.
    """

    norm: Any
    pool = 1

    def __init__(
        self, shape: tuple[int, ...], activation: Any, encoding: str, weights: str, norm: nn.Module, activation_bits: int | None
    ):
        # A norm per channel subtracts the mean of the channel, so a bias would have no effect.
        super().__init__(shape, encoding, weights, bias=isinstance(norm, Standardize) and norm.dims != (2, 3))
        self.norm, self.activation = norm, activation or nn.ReLU()
        self.quantizer = None if activation_bits is None else self._quantizer(activation_bits)

    @staticmethod
    def quantize(x: Tensor) -> Tensor:
        """Returns the bits of `x`: 1 above its mean, else 0."""
        return quantize(x)

    def _quantizer(self, bits: int) -> Quantize:
        """Returns the quantiser of the layer.

        Raises:
            ValueError: the layer cannot compute in whole numbers.
        """
        if isinstance(self.norm, Standardize) or not isinstance(self.activation, nn.ReLU):
            raise ValueError(f"activation_bits={bits}: only with normalization='batch' and ReLU")
        if (inputs := prod(self.shape[1:])) > MOST_INPUTS:
            raise ValueError(f"activation_bits={bits}: a layer of {inputs} inputs, only up to {MOST_INPUTS}")
        self.norm.codes_follow = True
        return Quantize(bits)

    def _product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """Computes the activations of inputs x.

        Args:
            step: the inputs are whole numbers times `step`: 1 for codes, 2⁻ᵏ for standardised pixels. Only a layer with a
                quantiser reads it.
        """
        if self.quantizer is None:
            return normalized(self.norm, self.activation, self._product(x), self.pool)
        if self.training or self.weights == "float":
            return self._learned(self.quantizer, x)
        return evaluated(partial(self._exact, self.quantizer, x, step), partial(self._learned, self.quantizer, x))

    def _learned(self, quantizer: Quantize, x: Tensor) -> Tensor:
        """Returns the codes as a training computes them."""
        return quantizer(normalized(self.norm, self.activation, self._product(x), self.pool))

    def _exact(self, quantizer: Quantize, x: Tensor, step: Tensor | float) -> Tensor:
        """Returns the codes as a packed network computes them."""
        with torch.autocast(x.device.type, enabled=False):
            product = self._product(x.to(torch.promote_types(x.dtype, torch.float32)))
        sums = product / (step * unit(self.encoding))  # nearly whole after Winograd's algorithm; `requantize` rounds them
        return max_pool(requantize(sums, *self.requantization(step), quantizer.levels).to(x.dtype), self.pool)

    def requantization(self, step: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Returns bias, int32 [out], and multiplier, float32 [out], see `bnn_exp.nn.requantize`. For `step` see `forward`."""
        quantizer: Any = self.quantizer
        line = *exact_scale_and_shift(self.norm), quantizer.clip.detach()
        return requantization_of_layer(*line, quantizer.levels, prod(self.shape[1:]), self.encoding, step)


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
        activation_bits: 8 or 4: the layer gives codes, see `bnn_exp.nn.codes`. It then reads codes or pixels, needs
            `normalization=batch` and ReLU, and has at most 8,224 inputs. None: real activations.

    Raises:
        ValueError: `kernel_size` is even; an encoding, a normalisation or a kind of weights is unknown; or the layer can't give
            codes.
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
        activation_bits: int | None = None,
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
        super().__init__(shape, activation, encoding, weights, norms[normalization](), activation_bits)
        self.in_channels, self.out_channels, self.kernel_size, self.pool = in_channels, out_channels, kernel_size, pool

    def _product(self, x: Tensor) -> Tensor:
        return self._convolved(x, self.value)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, encoding={self.encoding}, weights={self.weights}"


@exact
class BinaryNormalizedLinear(_BinaryNormalized):
    """A layer activation(normalise(x Vᵀ + b)) of binary V and b: [batch, in_features] → [batch, out_features].

    Args:
        activation: applied to the normalised numbers. None: ReLU.
        normalization: `sample` normalises over the features of each sample. `batch` is BatchNorm; the layer then has no bias.
        activation_bits: see `BNCVL`.

    Raises:
        ValueError: an encoding, a normalisation or a kind of weights is unknown, or the layer can't give codes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Callable[[Tensor], Tensor] | None = None,
        encoding: str = "boolean",
        normalization: str = "sample",
        weights: str = "latent",
        activation_bits: int | None = None,
    ):
        if normalization not in ("sample", "batch"):
            raise ValueError(f"normalization={normalization!r}: must be one of sample, batch")
        norm = Standardize((1,)) if normalization == "sample" else nn.BatchNorm1d(out_features)
        super().__init__((out_features, in_features), activation, encoding, weights, norm, activation_bits)

    def _product(self, x: Tensor) -> Tensor:
        if self.weights == "float" or not takes_kernels(x):
            return F.linear(x, self.value, self.bias_value)
        sums, bias = linear(x, self.weight, self.value), self.bias_value
        return sums if bias is None else sums + bias
