"""Prepares the arguments of an export: packs the network, and provides missing images and class names."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bnn_exp.deploy.load import pack_network
from bnn_exp.deploy.mlp import DeployedMLP
from bnn_exp.errors import UserError
from bnn_exp.nn import binary_layers
from bnn_exp.records import probe_logits


def ready(
    format: str, network: nn.Module, directory: str | Path, images: Tensor | None, classes: Sequence[str] | None = None
) -> tuple[nn.Module, Path, Tensor, tuple[str, ...]]:
    """Returns the packed form of `network`, the directory, the images and the class names.

    Args:
        format: the format of the export, for messages.
        network: a packed network, or one that `pack_network` can pack.
        images: uint8 [n, channels, height, width]. None: random pixels; this needs a network that knows the shape of its
            images, or an MLP for square images of one or three channels.
        classes: the names of the classes. None: "0", "1", …

    Raises:
        UserError: the network can't be packed, the images have another dtype or shape, no random pixels can replace them, or
            there are more or fewer names than classes.
    """
    if any(layer.weight.dtype != torch.uint8 for _, layer in binary_layers(network)):
        try:
            network = pack_network(network, None if images is None else tuple(images.shape[1:]))
        except UserError as error:
            raise UserError(f"export.format={format}: {error}") from error
    if images is None:
        images = probe_logits.pixels(_shape(format, network))
    fits = getattr(network, "takes", lambda picture: True)  # a plugin's network may lack the method
    if images.dtype != torch.uint8 or images.dim() != 4 or not len(images) or not fits(tuple(images.shape[1:])):
        raise UserError(
            f"export.format={format}: images are {images.dtype} {list(images.shape)}\n"
            "allowed: pixels, uint8 [n, channels, height, width], one or more, of the network's size"
        )
    with torch.inference_mode():
        outputs = network(images[:1]).shape[1]
    classes = [str(i) for i in range(outputs)] if classes is None else classes
    if len(classes) != outputs:
        raise UserError(f"export.format={format}: {len(classes)} class names\nallowed: {outputs}, one for each class")
    return network, Path(directory), images, tuple(classes)


def in_folder(file: Path) -> Path:
    """Creates the folder of `file` if it is missing, and returns `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _shape(format: str, network: nn.Module) -> tuple[int, ...]:
    """Returns the shape of a network's images; for an MLP, of square images that have as many pixels as it has inputs."""
    known = getattr(network, "image_shape", None)
    if known:
        return tuple(known)
    inputs = network.layers[0].inputs if isinstance(network, DeployedMLP) else 0
    for channels in (1, 3):
        side = math.isqrt(inputs // channels)
        if side and channels * side * side == inputs:
            return channels, side, side
    raise UserError(
        f"export.format={format}: the size of the images is unknown\n"
        "allowed: images=, uint8 [n, channels, height, width]; the export is checked with them too"
    )
