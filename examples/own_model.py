"""Adds a network. It becomes a choice of the command:

python examples/own_model.py model=resmlp model.width=128
bnn-train plugins=[examples/own_model.py] model=resmlp model.width=128
"""

import sys
from math import prod
from typing import Literal

from torch import Tensor, nn

from bnn_exp import BinaryLinear, Count, Weights, binarize, register_model, schema, with_packed_layers
from bnn_exp.cli import main


@schema
class Settings:
    name: Literal["resmlp"]
    width: Count
    blocks: Count
    weights: Weights


class ResMLP(nn.Module):
    """A binary multi-layer perceptron in which each block adds to its input."""

    def __init__(self, image_shape, num_classes, width=256, blocks=3, weights="bits"):
        super().__init__()
        sizes = [(prod(image_shape), width), *[(width, width)] * blocks, (width, num_classes)]
        self.layers = nn.ModuleList(BinaryLinear(i, o, "bipolar", n > 0, weights) for n, (i, o) in enumerate(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(o) for _, o in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps pixels, uint8 [batch, channels, height, width], to logits, float32 [batch, num_classes]."""
        first, *blocks, last = zip(self.layers, self.norms, strict=True)
        h = first[1](first[0](x.flatten(1)))
        for layer, norm in blocks:
            h = h + norm(layer(binarize(h)))
        return last[1](last[0](binarize(h)))

    def stages(self):
        """Returns for each layer the modules that hold its parameters. `freeze=` and `fresh=` count these layers."""
        return [[layer, norm] for layer, norm in zip(self.layers, self.norms, strict=True)]

    def pack(self, state):
        """Returns the network on packed bits, for `load_packed` and `task=evaluate`."""
        return with_packed_layers(self, state)


register_model(
    Settings,
    ResMLP,
    values={"width": 256, "blocks": 3},
    optimizer="hypermask_factored",
    trainer={"epochs": 60, "batch_size": 128},
)
if __name__ == "__main__":
    sys.exit(main())
