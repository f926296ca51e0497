"""Small CNNs with random settings, weights and norms, for tests of packed networks and exports."""

import random

import torch
from torch import Tensor, nn

from bnn_exp.bits.reference import unpacked
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.vgg import VGG
from bnn_exp.nn import Binarize, normalized
from bnn_exp.nn.pooling import max_pool

WIDTHS = (1, 3, 8, 16, 17, 33, 65)


def random_vgg(seed: int, **fixed) -> VGG:
    """Returns a small VGG in evaluation mode: BatchNorms have scales of both signs, zeros and tiny numbers.

    Args:
        fixed: arguments of `VGG` that are not drawn.
    """
    settings = begun(seed)[1]
    network = VGG(**of_channels(settings | fixed))
    for norm in (*network.norms, network.last_norm):
        randomize(norm)
    return network.eval()


def random_bncvl(seed: int, **fixed) -> BNCVLNet:
    """Returns a small BNCVLNet of codes in evaluation mode, with norms as in `random_vgg`, and random clips.

    Args:
        fixed: arguments of `BNCVLNet` that are not drawn.
    """
    draw, settings = begun(seed)
    settings |= {
        "pool": draw.choice([1, 2, 3]),
        "dense": [draw.choice(WIDTHS) for _ in range(draw.choice([0, 1, 2]))],
        "weights": "bits",
        "activation_bits": draw.choice([4, 8]),
    }
    network = BNCVLNet(**of_channels(settings | fixed))
    for layer in (*network.convolutions, *network.dense):
        randomize(layer.norm)
    # A layer adds up about √inputs · 100 where a BatchNorm has statistics near 1: the scales make codes of all sizes.
    for layer in (*network.convolutions, *network.dense):
        layer.norm.weight.data /= 30 * layer.weight[0].numel() ** 0.5
        if layer.quantizer is not None:
            layer.quantizer.clip.data.fill_(draw.choice([0.3, 2.0, 5.0]))
    network.mean_over_image.quantizer.clip.data.fill_(draw.choice([0.5, 2.0]))
    return network.eval()


def begun(seed: int) -> tuple[random.Random, dict]:
    """Seeds torch; returns a generator of Python's random numbers, and the settings that both kinds of network have."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    return draw, {
        "image_shape": (draw.choice([1, 3]), draw.randint(4, 9), draw.randint(4, 9)),
        "num_classes": draw.choice([2, 10]),
        "channels": [draw.choice(WIDTHS) for _ in range(draw.choice([1, 2]))],
        "convolutions": draw.choice([1, 2]),
        "kernel_size": draw.choice([1, 3, 5]),
        "encoding": draw.choice(["bipolar", "centred", "boolean"]),
        "mean": [draw.random() for _ in range(3)],
        "std": [draw.choice([0.02, 0.1, 0.3])],
    }


def of_channels(settings: dict) -> dict:
    """Returns the settings with a mean for each channel of the images."""
    return settings | {"mean": settings["mean"][: settings["image_shape"][0]]}


def randomize(norm: nn.Module) -> None:
    """Gives a BatchNorm random statistics, scales and shifts. One scale is 0, and one is tiny and negative."""
    norm.weight.data.normal_()
    norm.bias.data.normal_(0, 0.5)
    norm.weight.data[0] = 0
    norm.weight.data[-1] = -1e-20
    norm.running_mean.normal_(0, 3)
    norm.running_var.uniform_(0.1, 20)


def random_pictures(network: nn.Module, count: int = 8) -> Tensor:
    """Returns random pixels for the network: uint8 [count, channels, height, width]. The first picture is black."""
    pixels = torch.randint(0, 256, (count, *network.image_shape), dtype=torch.uint8)
    pixels[0] = 0
    return pixels


@torch.no_grad()
def vgg_bits(network: VGG, pixels: Tensor) -> list[Tensor]:
    """Returns the bits that each convolution of the float network gives, bool [batch, height, width, channels]."""
    h, found = network.standardized(pixels), []
    for i, (convolution, norm) in enumerate(zip(network.convolutions, network.norms, strict=True), 1):
        h = convolution(h)
        h = max_pool(h, 2) if i % network.per_width == 0 else h
        h = normalized(norm, Binarize(network.encoding, network.window), h)
        found.append(h.permute(0, 2, 3, 1) > 0)
    return found


@torch.no_grad()
def bncvl_codes(network: BNCVLNet, pixels: Tensor) -> list[Tensor]:
    """Returns the codes of each layer but the last of the float network, uint8 [batch, height, width, channels]."""
    h, found = network.standardized(pixels), []
    for i, convolution in enumerate(network.convolutions):
        h = convolution(h) if i else convolution(h, network.pixel_step)
        found.append(h.permute(0, 2, 3, 1))
    h = network.mean_over_image(h)
    found.append(h[:, None, None])
    for layer in network.dense[:-1]:
        h = layer(h)
        found.append(h[:, None, None])
    assert all(torch.equal(codes, codes.round()) for codes in found)
    return [codes.to(torch.uint8) for codes in found]


def unpacked_bits(packed: Tensor, channels: int) -> Tensor:
    """Returns packed bits, uint8 [batch, height, width, bytes], as bool [batch, height, width, channels]."""
    bits = unpacked(packed.flatten(0, 2), torch.bool)[:, :channels]
    return bits.unflatten(0, packed.shape[:3])
