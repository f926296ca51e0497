"""Binary normalised layers: convolution (BNCVL, the second seed) and its dense sibling (Cabral et al., arXiv 2509.07025)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.nn.binary import BinaryLayer, quantize
from bnn_exp.nn.exact import exact

NORMALIZATIONS = ("sample", "batch", "channel")


@exact
class Standardize(nn.Module):
    """z ← (z − mean)/(std + 1e−8) over `dims` of each sample, the standard deviation unbiased."""

    def __init__(self, dims: tuple[int, ...]):
        super().__init__()
        self.dims = dims

    def forward(self, z: Tensor) -> Tensor:
        std, mean = torch.std_mean(z, dim=self.dims, keepdim=True)
        return (z - mean) / (std + 1e-8)


class _BinaryNormalized(BinaryLayer):
    def __init__(self, shape, activation, encoding, weights, norm: nn.Module):
        # what a norm per channel would take away again is not added
        super().__init__(shape, encoding, weights, bias=isinstance(norm, Standardize) and norm.dims != (2, 3))
        self.norm, self.activation = norm, activation

    @staticmethod
    def quantize(x: Tensor) -> Tensor:
        """The bits of `x`: 1 above its mean, else 0."""
        return quantize(x)


@exact
class BNCVL(_BinaryNormalized):
    """activation(normalise(conv(x))) with the values of bits: [batch, in, H, W] → [batch, out, H, W], zero-padded.

    As called by default it is the seed's layer: latent weights ~ N(0, 1) and bias 0, boolean bits by the mean, straight-through
    gradient, normalised over (C, H, W) of each sample.

    Args:
        kernel_size: odd.
        activation: of the normalised numbers; `nn.Identity()` for none.
        normalization: `sample` (over C, H, W of each sample), `channel` (over H, W of each channel of each sample), `batch`
            (BatchNorm: of each channel over the batch, with a real scale and shift). The last two have no bias, which
            they would take away.

    Raises:
        ValueError: an even kernel, or an unknown encoding, normalisation or kind of weights.
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
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size

    def forward(self, x: Tensor) -> Tensor:
        z = F.conv2d(x, self.value, self.bias_value, padding=self.kernel_size // 2)
        return self.activation(self.norm(z))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, encoding={self.encoding}, weights={self.weights}"


@exact
class BinaryNormalizedLinear(_BinaryNormalized):
    """activation(normalise(x Vᵀ + b)), V and b the values of bits: [batch, in_features] → [batch, out_features].

    Args:
        normalization: `sample` (over the features of each sample) or `batch` (BatchNorm, and no bias).
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
        return self.activation(self.norm(F.linear(x, self.value, self.bias_value)))
