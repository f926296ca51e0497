"""The time of each layer of a packed CNN, beside torch's product of the same size in fp32."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.commands.benchmark.timing import time_calls
from bnn_exp.deploy.bncvl import DeployedBNCVL
from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.mlp import LastLayer

Row = dict[str, Any]
NAMES = {
    "CodeLayer": "convolution to codes",
    "StepLayer": "convolution to bits",
    "Average": "mean over the image",
    "LastLayer": "scores",
    "DeployedConvolution": "convolution, real",
    "DeployedDense": "dense, real",
    "ImageMean": "mean over the image",
}


def has_layers(packed: nn.Module) -> bool:
    """Returns True if `layer_times` knows the layers of a packed network."""
    return isinstance(packed, DeployedCNN | DeployedBNCVL)


@torch.inference_mode()
def layer_times(packed: Any, batch: int, rounds: int) -> list[Row]:
    """Measures each layer of a packed CNN on a CPU, called alone, on random pixels.

    Returns:
        A row for each layer: its number `layer` (from 1) and its `kind`; `reads` and `gives`, such as "28×28×32 bits"; `batch`;
        `multiply_adds` of an image; the seconds of the batch (`median`, `low`, `high`); `share`, the layer's part of the
        seconds of all layers; and `torch`, the median of torch's convolution or `F.linear` of that size, None for a layer
        without a product.
    """
    pixels = torch.randint(0, 256, (batch, *packed.image_shape), dtype=torch.uint8)
    rows = [_row(i, layer, x, rounds) for i, (layer, x) in enumerate(_walk(packed, pixels), 1)]
    whole = sum(row["median"] for row in rows)
    return [row | {"share": row["median"] / whole} for row in rows]


def _walk(packed: Any, pixels: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """Yields each layer of a packed CNN with its input for `pixels`."""
    if isinstance(packed, DeployedCNN):
        h, layers = pixels.permute(0, 2, 3, 1).contiguous(), [*packed.layers]
    else:
        h, layers = packed.standardized(pixels), [*packed.convolutions, packed.mean_over_image, *packed.dense]
    for layer in layers:
        h = h.flatten(1) if layer is layers[-1] else h
        yield layer, h
        h = layer(h)


def _row(number: int, layer: Any, x: Tensor, rounds: int) -> Row:
    y = layer(x)
    calls: dict[str, Callable[[], Any]] = {"packed": partial(layer, x)}
    product = _product(layer, x)
    if product:
        calls["torch"] = product[0]
    times = time_calls(calls, x.device, rounds)
    return {
        "layer": number,
        "kind": _kind(layer, x),
        "reads": _read(layer, x) if number > 1 else "pixels",
        "gives": _shown(y, getattr(layer, "outputs", None), getattr(layer, "gives", "real")),
        "batch": len(x),
        "multiply_adds": product[1] if product else 0,
        **times["packed"],
        "torch": times["torch"]["median"] if product else None,
    }


def _kind(layer: Any, x: Tensor) -> str:
    name = NAMES.get(type(layer).__name__, type(layer).__name__)
    return name.replace("convolution", "dense") if x.dim() == 4 and tuple(x.shape[1:3]) == (1, 1) else name


def _read(layer: Any, x: Tensor) -> str:
    """Returns the shape and the kind of the inputs x of a layer."""
    if isinstance(layer, LastLayer):
        return f"{layer.inputs} {'codes' if layer.pixels else 'bits'}"
    return _shown(x, getattr(layer, "channels", None), getattr(layer, "takes", "real"))


def _shown(values: Tensor, channels: int | None, kind: str) -> str:
    """Returns the shape and the kind of the numbers between two layers. Packed bits have `channels` channels."""
    sides = list(values.shape[1:])
    if values.dtype != torch.uint8:  # channels first
        return f"{'×'.join(map(str, sides[1:] + sides[:1]))} real"
    if len(sides) == 3 and channels:
        sides[-1] = channels
    return f"{'×'.join(map(str, sides))} {kind}"


def _product(layer: Any, x: Tensor) -> tuple[Callable[[], Any], int] | None:
    """Returns torch's product in fp32 of the size of `layer`, and its multiply-adds for an image; None without a product."""
    if hasattr(layer, "size"):  # a layer of `bnn_exp.deploy.integers`: channels last, bits packed
        return _convolution(len(x), layer.channels, x.shape[1], x.shape[2], layer.outputs, layer.size)
    if hasattr(layer, "shape"):
        out, channels, size, _ = layer.shape
        return _convolution(len(x), channels, x.shape[2], x.shape[3], out, size)
    if hasattr(layer, "inputs"):
        call = partial(F.linear, torch.randn(len(x), layer.inputs), torch.randn(layer.outputs, layer.inputs))
        return call, layer.inputs * layer.outputs
    return None


def _convolution(batch: int, channels: int, height: int, width: int, out: int, size: int) -> tuple[Callable[[], Any], int]:
    x = torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    w = torch.randn(out, channels, size, size).contiguous(memory_format=torch.channels_last)
    return partial(F.conv2d, x, w, padding=size // 2), height * width * channels * out * size**2
