"""The binary multi-layer perceptron of the reference program (Shibuya et al., BinSFO, Algorithm 1), with optional changes."""

from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor, nn

from bnn_exp.nn import Binarize, BinaryLinear, normalized
from bnn_exp.nn.known_classes import exact


@exact
class MLP(nn.Module):
    """A perceptron of `num_layers` binary linear layers, each with BatchNorm, and with a binary activation except the last.

    The sizes are `in_features` → `hidden_size` → … → `hidden_size` → `num_classes`.

    Args:
        encoding: the encoding of weights and activations.
        window: the straight-through gradient of the activation passes where |x| ≤ window. None: everywhere.
        binarize_logits: True applies a binary activation to the last layer too, as in the reference program. This costs most of
            the accuracy, because ten bits cannot rank ten classes. (The reference program also applies log-softmax to the
            logits. The loss applies log-softmax again, which changes nothing, because log-softmax is idempotent.)
        affine: every BatchNorm has a trained scale and shift.
        running_stats: every BatchNorm keeps running statistics. Without them evaluation normalises each batch by itself.
        weights: `bits`, `latent` or `float`, see `bnn_exp.nn.BinaryLayer`.

    Example:
        >>> MLP(784, 10, hidden_size=256)(torch.rand(32, 1, 28, 28)).shape
        torch.Size([32, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_size: int = 256,
        num_layers: int = 4,
        encoding: str = "bipolar",
        window: float | None = 1.0,
        binarize_logits: bool = False,
        affine: bool = True,
        running_stats: bool = True,
        weights: str = "bits",
    ):
        super().__init__()
        sizes = [in_features, *[hidden_size] * (num_layers - 1), num_classes]
        self.layers = nn.ModuleList(
            BinaryLinear(i, o, encoding, layer > 0, weights) for layer, (i, o) in enumerate(pairwise(sizes))
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(size, affine=affine, track_running_stats=running_stats) for size in sizes[1:])
        self.encoding, self.window, self.binarize_logits = encoding, window, binarize_logits

    @classmethod
    def of(cls, image_shape: tuple[int, int, int], num_classes: int, batch_norm: dict[str, Any], **settings: Any) -> "MLP":
        """Builds the network from the settings of `model=mlp`."""
        return cls(prod(image_shape), num_classes, **batch_norm, **settings)

    def stages(self) -> list[list[nn.Module]]:
        """Returns the modules that hold parameters, a list for each layer."""
        return [[layer, norm] for layer, norm in zip(self.layers, self.norms, strict=True)]

    def suitable_shape(self) -> tuple[int]:
        """Returns the shape of one input: a vector."""
        first: Any = self.layers[0]
        return (first.in_features,)

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits [batch, num_classes] of x [batch, …], with `in_features` numbers a sample. uint8 counts as x/255."""
        h, activation = x.flatten(1), Binarize(self.encoding, self.window)
        for layer, norm in zip(self.layers[:-1], self.norms[:-1], strict=True):
            h = normalized(norm, activation, layer(h))
        return normalized(self.norms[-1], activation if self.binarize_logits else None, self.layers[-1](h))
