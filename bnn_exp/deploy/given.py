"""Prepares the arguments of an export in Python: packs the network, and fills in images and classes that are missing."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bnn_exp.deploy.load import pack_network
from bnn_exp.errors import UserError
from bnn_exp.nn import binary_layers
from bnn_exp.records import probe_logits


def ready(
    format: str, network: nn.Module, directory: str | Path, images: Tensor | None, classes: Sequence[str] | None = None
) -> tuple[nn.Module, Path, Tensor, tuple[str, ...]]:
    """Returns the packed form of `network`, the directory, the images, and the classes.

    Args:
        network: a packed one, or one that `pack_network` packs.
        images: uint8 [n, channels, height, width]. None: random pixels for an MLP whose inputs are a square picture, grey or
            of three colours.
        classes: None: "0", "1", …

    Raises:
        UserError: the network can't be packed, or the images are missing or not such pixels.
    """
    if any(layer.weight.dtype != torch.uint8 for _, layer in binary_layers(network)):
        try:
            network = pack_network(network, None if images is None else tuple(images.shape[1:]))
        except UserError as error:
            raise UserError(f"export.format={format}: {error}") from error
    if images is None:
        images = probe_logits.pixels(_shape(format, network))
    if images.dtype != torch.uint8 or images.dim() != 4 or not len(images):
        raise UserError(
            f"export.format={format}: images are {images.dtype} {list(images.shape)}\n"
            "allowed: pixels, uint8 [n, channels, height, width], one or more"
        )
    if classes is None:
        with torch.inference_mode():
            classes = [str(i) for i in range(network(images[:1]).shape[1])]
    return network, Path(directory), images, tuple(classes)


def in_folder(file: Path) -> Path:
    """Returns `file`, whose folder is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _shape(format: str, network: nn.Module) -> tuple[int, int, int]:
    """The shape of the pictures that a packed MLP takes, where its inputs tell it."""
    inputs = network.layers[0].inputs if type(network).__name__ == "PackedMLP" else 0
    for channels in (1, 3):
        side = math.isqrt(inputs // channels)
        if side and channels * side * side == inputs:
            return channels, side, side
    raise UserError(
        f"export.format={format}: nothing tells the size of its pictures\n"
        "allowed: images, uint8 [n, channels, height, width], by which the export is checked too"
    )
