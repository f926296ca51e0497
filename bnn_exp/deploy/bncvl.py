"""Packed BNCVL networks: activations are real, weights are bits in memory, and each layer keeps its normalisation."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.bits import real_product, to_tiles, unpack
from bnn_exp.deploy.check import Evaluating
from bnn_exp.deploy.predicting import Predicting
from bnn_exp.deploy.replayed import Replayed, Replays
from bnn_exp.deploy.tiled import Tiled
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.nn import BNCVL, BinaryNormalizedLinear, encode
from bnn_exp.nn.binary import two_values
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.norm import affine_norm
from bnn_exp.nn.normalization import normalized


@exact
class DeployedConvolution(Evaluating):
    """A `BNCVL` layer that unpacks its weights for each use. It computes the same numbers as the float layer.

    Args:
        layer: the layer to copy: its shape, activation and normalisation. Its parameters may be on the meta device.
        state: the tensors of the layer by name, such as `weight` and `bias`, both as packed bits.
    """

    def __init__(self, layer: BNCVL, state: dict[str, Tensor]):
        super().__init__()
        self.encoding, self.activation, self.norm = layer.encoding, layer.activation, _norm(layer.norm, state)
        self.shape, self.padding, self.pool = tuple(layer.weight.shape), layer.kernel_size // 2, layer.pool
        self.register_buffer("packed", state["weight"].clone())
        self.register_buffer("bias", _bias(layer, state))
        bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
        self.register_buffer("values", encode(bits.float(), layer.encoding), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The values of the weights, float32 [out, in, kernel, kernel]."""
        out, *kernel = self.shape
        values = F.embedding(self.packed.to(torch.int32), self.values).flatten(1)
        return values[:, : self.shape[1] * self.shape[2] * self.shape[3]].reshape(out, *kernel)

    def forward(self, x: Tensor) -> Tensor:
        z = F.conv2d(x, self.weight, self.bias, padding=self.padding)
        return normalized(self.norm, self.activation, z, self.pool)


@exact
class DeployedDense(Tiled):
    """A `BinaryNormalizedLinear` layer with packed weights. Its sums add their terms in another order than the float layer."""

    def __init__(self, layer: BinaryNormalizedLinear, state: dict[str, Tensor]):
        super().__init__()
        self.encoding, self.activation, self.norm = layer.encoding, layer.activation, _norm(layer.norm, state)
        self.outputs, self.inputs = layer.weight.shape
        self.zero, self.one = two_values(layer.encoding)
        self.register_buffer("tiles", to_tiles(state["weight"]))
        self.register_buffer("bias", _bias(layer, state))

    def forward(self, x: Tensor) -> Tensor:
        products = real_product(x, self.tiles, self.outputs, self.zero, self.one)
        return normalized(self.norm, self.activation, products if self.bias is None else products + self.bias)


@exact
class DeployedBNCVL(Replayed, Predicting, BNCVLNet):
    """A packed `BNCVLNet`: its layers are `DeployedConvolution` and `DeployedDense`."""

    image_shape: Any

    def takes(self, picture: Sequence[int]) -> bool:
        first: Any = self.convolutions[0]
        return len(picture) == 3 and picture[0] == first.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.replays(super().forward, x)


def pack_bncvl(network: BNCVLNet, state: dict[str, Tensor]) -> DeployedBNCVL:
    """Turns `network` into a `DeployedBNCVL`, in place, and returns it in evaluation mode.

    Args:
        network: a float network. Its tensors may be on the meta device.
        state: the tensors that `bnn_exp.bits.deployed_state` returns.
    """
    for kind, layers in ((DeployedConvolution, network.convolutions), (DeployedDense, network.dense)):
        prefix = "convolutions" if layers is network.convolutions else "dense"
        for i, layer in enumerate(layers):
            start = f"{prefix}.{i}."
            layers[i] = kind(layer, {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)})
    network.mean, network.std = state["mean"].clone(), state["std"].clone()
    packed: Any = network
    packed.__class__, packed.replays = DeployedBNCVL, Replays()
    return packed.eval().requires_grad_(False)


def _norm(norm: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    if "norm.weight" not in state:
        return norm
    return affine_norm(type(norm), state["norm.weight"], state["norm.bias"])


def _bias(layer: BNCVL | BinaryNormalizedLinear, state: dict[str, Tensor]) -> Tensor | None:
    return encode(unpack(state["bias"], tuple(layer.bias.shape)), layer.encoding) if "bias" in state else None
