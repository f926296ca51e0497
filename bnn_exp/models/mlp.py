"""The binary multi-layer perceptron of the first seed (Shibuya et al., BinSFO, Algorithm 1), and what makes it learn."""

from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor, nn

from bnn_exp.nn import BinaryLinear, binarize
from bnn_exp.nn.exact import exact


@exact
class MLP(nn.Module):
    """`num_layers` binary linear layers, BatchNorm after each, a binary activation after each but the last.

    `in_features` → `hidden_size` → … → `hidden_size` → `num_classes`. The encoding is that of weights and activations.

    Args:
        window: the straight-through gradient of the activation passes where |x| ≤ window; None: everywhere.
        binarize_logits: binarise the last layer too, as the seed does. It costs most of the accuracy: ten bits can't rank
            ten classes. (The seed's log-softmax before a loss that begins with one changes nothing: it is idempotent.)
        weights: `bits`, `latent` or `float`, see `bnn_exp.nn.BinaryLayer`.
        affine, running_stats: of every BatchNorm. Without running statistics evaluation normalises by its own batch.

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
    def of(cls, image_shape: tuple[int, int, int], num_classes: int, batch_norm: dict[str, bool], **settings: Any) -> "MLP":
        """The network of the settings of `model=mlp`."""
        return cls(prod(image_shape), num_classes, **batch_norm, **settings)

    def stages(self) -> list[list[nn.Module]]:
        """Layer by layer, the modules that hold its parameters."""
        return [[layer, norm] for layer, norm in zip(self.layers, self.norms, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (uint8, standing for x/255) or numbers, [batch, …] of `in_features` each → logits [batch, num_classes]."""
        h = x.flatten(1)
        for layer, norm in zip(self.layers[:-1], self.norms[:-1], strict=True):
            h = binarize(norm(layer(h)), self.encoding, self.window)
        logits = self.norms[-1](self.layers[-1](h))
        if self.binarize_logits:
            return binarize(logits, self.encoding, self.window)
        return logits
