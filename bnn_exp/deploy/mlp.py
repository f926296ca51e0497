"""The binary MLP in integers: uint8 pixels in, bits between the layers, a threshold for each neuron.

With x the bits (or pixels) that enter a layer and w its weights, 1 for bit 1 and 0 (boolean) or −1 for bit 0, a layer sums
u = Σ x·w. The float network's product is (scale · u + offset)/divisor: its pixels stand for x/255, its bipolar activations for
2x − 1, and with the centred encoding values are halves of bipolar ones.
"""

import torch
from torch import Tensor, nn

from bnn_exp.bits import LANES, bit_steps, bit_sums, pack, pixel_steps, pixel_sums, to_tiles
from bnn_exp.bits.reference import ones
from bnn_exp.deploy.check import Evaluating
from bnn_exp.deploy.fold import thresholds
from bnn_exp.errors import UserError
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import binarize
from bnn_exp.nn.exact import exact
from bnn_exp.nn.norm import make_affine

_NEVER = torch.iinfo(torch.int32).max


class PackedLayer(Evaluating):
    """The weights of a binary linear layer as bits, and what its sums mean.

    Args:
        packed: the weights' bits, uint8 [outputs, ⌈inputs/8⌉].
        pixels: the inputs are uint8 pixels, else packed bits.
    """

    def __init__(self, packed: Tensor, inputs: int, encoding: str, pixels: bool):
        super().__init__()
        self.inputs, self.outputs, self.encoding, self.pixels = inputs, len(packed), encoding, pixels
        self.zero = 0 if encoding == "boolean" else -1
        self.register_buffer("tiles", to_tiles(packed))
        in_each, peak = ones(packed), 255 if pixels else 1
        self.low, self.high = (
            self.zero * peak * (inputs - in_each),
            peak * in_each,
        )  # of the sums; all between them is reachable
        centred = encoding == "centred"
        if pixels:
            self.scale, self.divisor, offset = 1, 510.0 if centred else 255.0, torch.zeros_like(in_each)
        elif encoding == "boolean":
            self.scale, self.divisor, offset = 1, 1.0, torch.zeros_like(in_each)
        else:
            self.scale, self.divisor, offset = 2, 4.0 if centred else 1.0, inputs - 2 * in_each
        self.register_buffer("offset", offset.to(torch.int32))

    def product(self, sums: Tensor) -> Tensor:
        """The float network's product, float32, for sums u [batch, outputs]."""
        product = torch.add(self.offset, sums, alpha=self.scale).to(torch.float32)
        return product if self.divisor == 1 else product / self.divisor

    @torch.no_grad()
    def folded(self, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
        """The threshold, int64 [outputs], and the flip, bool [outputs], that stand for norm(product) ≥ 0 at every sum."""
        return thresholds(lambda sums: (norm(self.product(sums[None])) >= 0)[0], self.low, self.high)


@exact
class HiddenLayer(PackedLayer):
    """Pixels or packed bits [batch, …] → the packed bits 1[norm(product) ≥ 0], uint8 [batch, 8 · tiles]."""

    def __init__(self, packed: Tensor, inputs: int, encoding: str, pixels: bool, norm: nn.BatchNorm1d):
        super().__init__(packed, inputs, encoding, pixels)
        found, flips = self.folded(norm)
        missing = len(self.tiles) * LANES - self.outputs
        filled = nn.functional.pad(found, (0, missing), value=_NEVER)
        self.register_buffer("thresholds", filled.to(torch.int32))
        self.register_buffer("flips", pack(nn.functional.pad(flips, (0, missing)))[0])

    def forward(self, x: Tensor) -> Tensor:
        steps = pixel_steps if self.pixels else bit_steps
        return steps(x, self.tiles, self.thresholds, self.flips, self.zero)


@exact
class LastLayer(PackedLayer):
    """Pixels or packed bits [batch, …] → norm(product), float32 [batch, outputs]."""

    def __init__(self, packed: Tensor, inputs: int, encoding: str, pixels: bool, norm: nn.BatchNorm1d):
        super().__init__(packed, inputs, encoding, pixels)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        sums = pixel_sums if self.pixels else bit_sums
        return self.norm(self.product(sums(x, self.tiles, self.outputs, self.zero)))


@exact
class PackedMLP(Evaluating):
    """What an `MLP` computes in evaluation, on bits: the same logits of uint8 pixels, and the same bits in every hidden layer.

    The same as on a CPU, where the float network's products are exact: up to 65,793 pixels.

    Args:
        network: gives the shape; its parameters may lie on the meta device.
        state: its weights, and scales and shifts of its norms, as `bnn_exp.bits.deployed_state` has them.

    Raises:
        UserError: its BatchNorms have no running statistics, and so no fixed threshold.
    """

    def __init__(self, network: MLP, state: dict[str, Tensor]):
        super().__init__()
        if not all(norm.track_running_stats for norm in network.norms):
            raise UserError(
                "model.batch_norm.running_stats=false: such a network normalises by each batch anew and can't be packed\n"
                "allowed: true"
            )
        self.encoding, self.window, self.binarize_logits = network.encoding, network.window, network.binarize_logits
        layers = []
        for i, layer in enumerate(network.layers):
            kind = LastLayer if i == len(network.layers) - 1 else HiddenLayer
            norm = _norm(state[f"norms.{i}.weight"], state[f"norms.{i}.bias"])
            layers.append(kind(state[f"layers.{i}.weight"], layer.in_features, network.encoding, i == 0, norm))
        self.layers = nn.ModuleList(layers)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Pixels, uint8 [batch, …] → logits, float32 [batch, classes]."""
        if x.dtype != torch.uint8:
            raise ValueError(f"pixels are {x.dtype}: a packed network takes uint8")
        h = x.flatten(1)
        for layer in self.layers:
            h = layer(h)
        return binarize(h, self.encoding, self.window) if self.binarize_logits else h


def _norm(scale: Tensor, shift: Tensor) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(len(scale))
    make_affine(norm)
    norm.load_state_dict({"weight": scale, "bias": shift}, strict=False)
    return norm.eval().requires_grad_(False)
