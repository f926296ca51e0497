"""Packed CNNs that compute in integers from the pixels to the sums of the last layer."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnn_exp.bits import unpack
from bnn_exp.bits.convolutions import to_rows
from bnn_exp.deploy.check import Evaluating
from bnn_exp.deploy.integers import Average, CodeLayer, IntegerLayer, StepLayer, border_offsets, factors
from bnn_exp.deploy.mlp import LastLayer
from bnn_exp.deploy.one_call import InOneCall
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.vgg import VGG
from bnn_exp.nn.codes import FIRST_CLIP
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.norm import affine_norm
from bnn_exp.nn.requantize import NoIntegers, average_multiplier, refuse_not_finite, requantization_of_layer

if TYPE_CHECKING:
    from bnn_exp.bits.cpu.network import Network  # at run time the first use imports numba


@exact
class DeployedCNN(InOneCall, Evaluating):
    """A packed CNN: it computes the same integers in every layer as the float network in evaluation, and the same logits.

    Args:
        layers: any number of layers of `bnn_exp.deploy.integers`, then a `LastLayer`.
        image_shape: (channels, height, width) of the pictures.
    """

    def __init__(self, layers: Sequence[nn.Module], image_shape: tuple[int, int, int]):
        super().__init__()
        self.layers, self.image_shape = nn.ModuleList(layers), tuple(image_shape)
        self.eval().requires_grad_(False)

    def takes(self, picture: Sequence[int]) -> bool:
        return tuple(picture) == self.image_shape

    def shapes(self) -> list[tuple[int, int, int]]:
        """Returns (height, width, channels) of what each layer reads. The last layer reads the positions as one row."""
        channels, height, width = self.image_shape or ()
        found = []
        for layer in self.layers:
            found.append((height, width, channels))
            if isinstance(layer, IntegerLayer):
                height, width, channels = height // layer.pool, width // layer.pool, layer.outputs
            else:  # an average, or the last layer
                height = width = 1
        return found

    def _network(self) -> "Network":
        from bnn_exp.bits.cpu.network import PictureNetwork

        layers = [layer.fields(shape) for layer, shape in zip(self.layers[:-1], self.shapes()[:-1], strict=True)]
        return PictureNetwork(self.image_shape, layers, self.layers[-1].record())

    def _by_layers(self, x: Tensor) -> Tensor:
        if not self.takes(x.shape[1:]):  # borders and the mean depend on the size
            raise ValueError(self._refusal(x))
        h = x.permute(0, 2, 3, 1).contiguous()
        for layer in self.layers[:-1]:
            h = layer(h)
        return self.layers[-1](h.flatten(1))


def pack_vgg(network: VGG, state: dict[str, Tensor]) -> DeployedCNN:
    """Returns the packed form of a VGG.

    Args:
        network: a float network. Its tensors may be on the meta device.
        state: the tensors that `bnn_exp.bits.deployed_state` returns.

    Raises:
        NoIntegers: the statistics of the pixels are not whole numbers; or a scale or a shift is not a finite number.
    """
    whole, step = pixel_steps(state)
    _, *shape = network.image_shape
    layers: list[nn.Module] = []
    for i, layer in enumerate(network.convolutions):
        scale, shift = state[f"norms.{i}.weight"], state[f"norms.{i}.bias"]
        refuse_not_finite(f"norms.{i}", scale=scale, shift=shift)
        norm = affine_norm(nn.BatchNorm2d, scale, shift)
        bits, pool = _bits(state[f"convolutions.{i}.weight"], layer), 2 if (i + 1) % network.per_width == 0 else 1
        product = _product(bits, network.encoding, shape) if i else _product_of_pixels(bits, network.encoding, whole, step)
        layers.append(StepLayer(bits, network.encoding, pool, None if i else whole, norm, *product))
        shape = [length // pool for length in shape]
    last = network.last
    bits = unpack(state["last.weight"], (last.out_features, last.in_features), torch.uint8)
    bits = bits.unflatten(1, (-1, *shape)).permute(0, 2, 3, 1)  # in the order of the picture's bits: channels last
    norm = affine_norm(nn.BatchNorm1d, state["last_norm.weight"], state["last_norm.bias"])
    rows = to_rows(bits.flatten(1, 2)[:, :, None], codes=False)
    layers.append(LastLayer(rows, last.in_features, network.encoding, "bits", norm))
    return DeployedCNN(layers, network.image_shape)


def pack_codes(network: BNCVLNet, state: dict[str, Tensor]) -> DeployedCNN:
    """Returns the packed form of a BNCVL network whose activations are codes. For the arguments see `pack_vgg`.

    Raises:
        NoIntegers: the statistics of the pixels are not whole numbers; or a scale, a shift or a clip is not a finite number.
    """
    whole, step = pixel_steps(state)
    shape: list[int] = list(network.image_shape[1:])
    layers: list[nn.Module] = []
    layer: Any
    for i, layer in enumerate(network.convolutions):
        bits = _bits(state[f"convolutions.{i}.weight"], layer)
        of_pixels = {} if i else {"padding": whole, "step": step}
        layers.append(_code_layer(f"convolutions.{i}", state, bits, layer, **of_pixels))
        shape = [length // layer.pool for length in shape]
    mean = network.mean_over_image.quantizer
    refuse_not_finite("mean_over_image", clip=state["mean_over_image.quantizer.clip"])
    multiplier = average_multiplier(state["mean_over_image.quantizer.clip"], mean.levels, prod(shape), FIRST_CLIP)
    layers.append(Average(bits.shape[0], multiplier, mean.levels))
    *hidden, last = network.dense
    for i, layer in enumerate(hidden):
        bits = unpack(state[f"dense.{i}.weight"], tuple(layer.weight.shape), torch.uint8)[:, None, None]
        layers.append(_code_layer(f"dense.{i}", state, bits, layer))
    name = f"dense.{len(hidden)}"
    norm = affine_norm(nn.BatchNorm1d, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
    layers.append(LastLayer(state[f"{name}.weight"], last.weight.shape[1], last.encoding, "codes", norm))
    return DeployedCNN(layers, network.image_shape)


def _code_layer(
    name: str, state: dict[str, Tensor], bits: Tensor, layer: Any, padding: Tensor | None = None, step: float = 1.0
) -> CodeLayer:
    """Returns the packed form of the layer `name`.

    Args:
        padding: uint8 [channels], the codes outside the picture, which stand for 0. None: zeros.
        step: the factor of the standardised pixels; 1 for codes.
    """
    scale, shift, clip = (state[f"{name}.{key}"] for key in ("norm.weight", "norm.bias", "quantizer.clip"))
    refuse_not_finite(name, scale=scale, shift=shift, clip=clip)
    levels = layer.quantizer.levels
    bias, multiplier = requantization_of_layer(scale, shift, clip, levels, bits[0].numel(), layer.encoding, step)
    padding = bits.new_zeros(bits.shape[3]) if padding is None else padding
    bias = bias - (factors(bits, layer.encoding) * padding).sum((1, 2, 3), dtype=torch.int32)
    return CodeLayer(bits, layer.encoding, layer.pool, padding, bias, multiplier, levels)


def pixel_steps(state: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Returns m, uint8 [channels], and 2⁻ᵏ: the network standardises pixels x to (x − m) · 2⁻ᵏ.

    Raises:
        NoIntegers: the statistics of the pixels have another form.
    """
    mean, std = (255 * state[name].flatten().double() for name in ("mean", "std"))
    whole, power = mean.round(), std.log2().round()
    near = torch.allclose(mean, whole, rtol=0, atol=1e-4) and torch.allclose(std.log2(), power, rtol=0, atol=1e-5)
    if not near or len(power.unique()) > 1 or not (whole >= 0).all() or not (whole <= 255).all():
        raise NoIntegers(
            "the network standardises pixels by numbers that are not whole, so it has no form in integers\n"
            "allowed: a network that this version of bnn-train has trained or fine-tuned (init_from=RUN)"
        )
    return whole.to(torch.uint8), 2.0 ** -power[0].item()


def _product_of_pixels(bits: Tensor, encoding: str, whole: Tensor, step: float) -> tuple[float, Tensor]:
    """Returns the unit and the offset of the products of pixels, see `StepLayer`."""
    unit = step / 2 if encoding == "centred" else step
    return unit, -unit * (factors(bits, encoding) * whole).sum((1, 2, 3)).expand(1, 1, -1)


def _product(bits: Tensor, encoding: str, shape: Sequence[int]) -> tuple[float, Tensor]:
    """Returns the unit and the offset of the products of bits, see `StepLayer`, on pictures of `shape` (height, width)."""
    if encoding == "boolean":
        return 1.0, torch.zeros(1, 1, len(bits))
    quarter = 0.25 if encoding == "centred" else 1.0  # centred weights and activations are half of bipolar ones
    return 2 * quarter, quarter * border_offsets(factors(bits, encoding), shape)


def _bits(packed: Tensor, layer: Any) -> Tensor:
    """Returns the weights of a convolution, uint8 [out, size, size, channels]."""
    return unpack(packed, tuple(layer.weight.shape), torch.uint8).permute(0, 2, 3, 1).contiguous()
