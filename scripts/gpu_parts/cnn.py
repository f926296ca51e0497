"""The part `cnn`: packed CNNs of integers beside their float twins in bf16."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.commands.benchmark.float_twin import twin
from bnn_exp.commands.benchmark.timing import time_calls
from bnn_exp.deploy.load import pack_network
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.vgg import VGG
from bnn_exp.nn.graphs import Graphs
from gpu_parts.cases import Machine, Row

BATCHES = 1, 64, 1024
PIXELS: dict[str, Any] = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26)}  # about those of CIFAR-10


def networks(tiny: bool) -> dict[str, nn.Module]:
    """Returns new networks for images of 32 × 32 pixels with random bits, by their names in the table. `tiny`: narrow ones."""
    widths, narrow = (64, 128, 256), (8, 16)
    bncvl = {"channels": narrow if tiny else widths, "weights": "bits", **PIXELS}
    return {
        "vgg (128, 256, 512)": VGG((3, 32, 32), 10, narrow if tiny else (128, 256, 512), **PIXELS),
        "bncvl (64, 128, 256), 8 bits": BNCVLNet((3, 32, 32), 10, activation_bits=8, **bncvl),
        "bncvl (64, 128, 256), 4 bits": BNCVLNet((3, 32, 32), 10, activation_bits=4, **bncvl),
    }


def of_cnn(machine: Machine) -> Iterator[Row]:
    """Yields the microseconds of a batch by each packed network, and by its float twin in bf16 as a CUDA graph.

    Raises:
        RuntimeError: logits of a packed network differ from those of its definition on the CPU.
    """
    where, on_gpu = machine.torch_device, machine.device == "cuda"
    for name, network in networks(tiny=not on_gpu).items():
        pixels = torch.randint(0, 256, (BATCHES[-1] if on_gpu else 2, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            network.train()(pixels[:64])  # so that the statistics of BatchNorm are those of real sums
        packed = pack_network(network.eval())
        expected = packed(pixels[:64])
        packed.to(where)
        if not torch.equal(packed(pixels[:64].to(where)).cpu(), expected):
            raise RuntimeError(f"{name}: the logits differ from those of the CPU")
        other = _recorded(twin(network.to(where)).eval()) if on_gpu else twin(network)
        for batch in BATCHES if on_gpu else (2,):
            x = pixels[:batch].to(where)
            yield {"batch, µs": name, "batch": batch} | _times({"packed": packed, "torch bf16": other}, x)


def _recorded(network: Any) -> Graphs:
    """Returns a float twin in bf16, as a function of pixels that replays CUDA graphs."""
    layers = network[1:].bfloat16()
    return Graphs(lambda pixels: layers(network[0](pixels / 255).bfloat16()), required=True)


@torch.inference_mode()
def _times(ways: dict[str, Any], x: Tensor) -> Row:
    for way in [*ways.values()] * 2:  # the second call records a CUDA graph
        way(x)
    calls = {name: (lambda way=way: way(x)) for name, way in ways.items()}
    return {name: 1e6 * times["median"] for name, times in time_calls(calls, x.device).items()}
