"""The binary MLP in integers: the input is uint8 pixels, the activations are bits, and each hidden neuron has a threshold.

Let x be the bits or pixels that enter a layer. Let w be the layer's weights: 1 for bit 1, and 0 (boolean) or −1 (other
encodings) for bit 0. The layer computes the sums u = Σ x·w. The float network's product is (scale · u + offset)/divisor: its
pixels stand for x/255, its bipolar activations for 2x − 1, and its centred values are half of bipolar ones.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bnn_exp.bits import LANES, bit_steps, bit_sums, pack, pixel_steps, pixel_sums, scores, to_tiles
from bnn_exp.bits.reference import ones
from bnn_exp.deploy.check import Evaluating
from bnn_exp.deploy.fold import thresholds
from bnn_exp.deploy.one_call import InOneCall
from bnn_exp.deploy.tiled import Tiled
from bnn_exp.errors import UserError
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import binarize
from bnn_exp.nn.function import takes_kernels
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.norm import affine_norm

if TYPE_CHECKING:
    from bnn_exp.bits.cpu.network import Network, Scores, Steps  # at run time the first use imports numba

_NEVER = torch.iinfo(torch.int32).max  # a threshold that no sum reaches


class DeployedLayer(Tiled):
    """A binary linear layer with packed weights, and the factors that turn its sums into the float layer's products.

    Args:
        packed: the bits of the weights, uint8 [outputs, bytes]. Bits that belong to no input are 0.
        inputs: the number of inputs.
        reads: the kind of the inputs: `pixels`, uint8, which stand for x/255; `codes`, uint8; or packed `bits`.
    """

    def __init__(self, packed: Tensor, inputs: int, encoding: str, reads: str):
        super().__init__()
        self.inputs, self.outputs, self.encoding, self.pixels = inputs, len(packed), encoding, reads != "bits"
        self.zero = 0 if encoding == "boolean" else -1
        self.register_buffer("tiles", to_tiles(packed))
        in_each, peak = ones(packed), 255 if self.pixels else 1
        # The least and the greatest sum of each output.
        self.low, self.high = self.zero * peak * (inputs - in_each), peak * in_each
        centred = encoding == "centred"
        if self.pixels:
            whole = 255.0 if reads == "pixels" else 1.0
            self.scale, self.divisor, offset = 1, 2 * whole if centred else whole, torch.zeros_like(in_each)
        elif encoding == "boolean":
            self.scale, self.divisor, offset = 1, 1.0, torch.zeros_like(in_each)
        else:
            self.scale, self.divisor, offset = 2, 4.0 if centred else 1.0, inputs - 2 * in_each
        self.register_buffer("offset", offset.to(torch.int32))

    def product(self, sums: Tensor) -> Tensor:
        """Returns the product of the float network, float32, for sums u, int32 [batch, outputs]."""
        product = torch.add(self.offset, sums, alpha=self.scale).to(torch.float32)
        return product if self.divisor == 1 else product / self.divisor

    @torch.no_grad()
    def folded(self, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
        """Returns thresholds t, int64 [outputs], and bools v: norm(product) ≥ 0 equals (u ≥ t) ≠ v for every sum u."""
        return thresholds(lambda sums: (norm(self.product(sums[None])) >= 0)[0], self.low, self.high)


@exact
class HiddenLayer(DeployedLayer):
    """A hidden layer: pixels or packed bits [batch, …] → the bits 1[norm(product) ≥ 0], packed, uint8 [batch, 8 · tiles]."""

    def __init__(self, packed: Tensor, inputs: int, encoding: str, reads: str, norm: nn.BatchNorm1d):
        super().__init__(packed, inputs, encoding, reads)
        found, inverted = self.folded(norm)
        missing = len(self.tiles) * LANES - self.outputs
        filled = nn.functional.pad(found, (0, missing), value=_NEVER)
        self.register_buffer("thresholds", filled.to(torch.int32))
        self.register_buffer("inverted", pack(nn.functional.pad(inverted, (0, missing)))[0])

    def record(self) -> "Steps":
        """Returns the layer as a part of a compiled network."""
        from bnn_exp.bits.cpu.network import Steps

        return Steps(self.pixels, self.tiles, self.thresholds, self.inverted, self.zero)

    def forward(self, x: Tensor) -> Tensor:
        steps = pixel_steps if self.pixels else bit_steps
        return steps(x, self.tiles, self.thresholds, self.inverted, self.zero)


@exact
class LastLayer(DeployedLayer):
    """The last layer: pixels, codes or packed bits [batch, …] → norm(product), float32 [batch, outputs]."""

    def __init__(self, packed: Tensor, inputs: int, encoding: str, reads: str, norm: nn.BatchNorm1d):
        super().__init__(packed, inputs, encoding, reads)
        self.norm = norm

    def record(self) -> "Scores":
        """Returns the layer as a part of a compiled network."""
        from bnn_exp.bits.cpu.network import Scores

        affine = self.offset, self.norm.weight, self.norm.bias, self.scale, self.divisor
        return Scores(self.pixels, self.tiles, *affine, self.zero)

    def forward(self, x: Tensor) -> Tensor:
        if takes_kernels(x):  # one operator, which rounds like torch on a CPU
            affine = self.offset, self.norm.weight, self.norm.bias, self.scale, self.divisor
            return scores(x, self.tiles, *affine, self.zero, self.pixels)
        sums = pixel_sums if self.pixels else bit_sums
        return self.norm(self.product(sums(x, self.tiles, self.outputs, self.zero)))


@exact
class DeployedMLP(InOneCall, Evaluating):
    """A packed `MLP`: it computes the same logits and the same hidden bits as the float network in evaluation, on bits.

    This holds for the float network on a CPU, whose products are exact up to 65,793 pixels.

    Args:
        network: the network to pack. Its parameters may be on the meta device.
        state: the tensors that `bnn_exp.bits.deployed_state` returns.

    Raises:
        UserError: the BatchNorms have no running statistics, so there are no fixed thresholds.
    """

    def __init__(self, network: MLP, state: dict[str, Tensor]):
        super().__init__()
        if not all(norm.track_running_stats for norm in network.norms):
            raise UserError(
                "model.batch_norm.running_stats=false: the network normalises each batch by itself, so it can't be packed\n"
                "allowed: true"
            )
        self.encoding, self.window, self.binarize_logits = network.encoding, network.window, network.binarize_logits
        layers = []
        for i, layer in enumerate(network.layers):
            kind, reads = LastLayer if i == len(network.layers) - 1 else HiddenLayer, "bits" if i else "pixels"
            norm = affine_norm(nn.BatchNorm1d, state[f"norms.{i}.weight"], state[f"norms.{i}.bias"])
            layers.append(kind(state[f"layers.{i}.weight"], layer.in_features, network.encoding, reads, norm))
        self.layers, self.inputs = nn.ModuleList(layers), layers[0].inputs
        self.eval()

    def takes(self, picture: Sequence[int]) -> bool:
        return math.prod(picture) == self.inputs

    def _network(self) -> "Network":
        from bnn_exp.bits.cpu.network import Network

        return Network(self.inputs, [layer.record() for layer in self.layers])

    def _by_layers(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        for layer in self.layers:
            h = layer(h)
        return h

    def _finished(self, logits: Tensor) -> Tensor:
        return binarize(logits, self.encoding, self.window) if self.binarize_logits else logits

    def _finishes(self) -> bool:
        return self.binarize_logits
