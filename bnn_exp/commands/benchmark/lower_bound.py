"""The least work of an epoch, in operations and bytes, and the time that this work takes on this machine.

Only matrix products count as operations: three for a weight and an image, two in the first layer. Bytes and kernels are counted
only for an MLP of bits on a GPU (`bnn_exp.training.costs`).

A product takes the time of its operations or of its bytes, whichever is longer. Any other kernel takes the time of its bytes.
The rates (operations and bytes per second) are measured on matrices that are not all 0. The time to launch kernels is left out.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bnn_exp.bits.cuda.products import exact_product, has_fp8
from bnn_exp.commands.benchmark.timing import seconds_of
from bnn_exp.data.dataset import Dataset
from bnn_exp.models import cost
from bnn_exp.models.mlp import MLP
from bnn_exp.training import costs
from bnn_exp.training.costs import Work

SIDE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices whose product measures the rate of arithmetic
COPIED = {"cpu": 2**28, "cuda": 2**32}  # bytes of the copy that measures the rate of memory
_REPEATS = 5


def products(network: nn.Module, data: Dataset, rows: int, kind: str) -> Iterator[Work]:
    """Yields the work of all matrix products of a training step on `rows` images, each product with the dtype `kind`."""
    sample, _ = data.train.batch(torch.arange(2, device=data.train.labels.device))
    for i, layer in enumerate(layer for layer in cost.layers(network, sample) if layer.multiply_adds):
        yield Work(2 * layer.multiply_adds * rows * (3 if i else 2), kind=kind)


def sizes_of(network: MLP) -> list[int]:
    """Returns the number of pixels, the widths of the hidden layers, and the number of classes."""
    layers: Any = network.layers
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def rates(kinds: set[str], device: torch.device) -> dict[str, float]:
    """Measures the rates of a device: operations per second of torch's product for each dtype in `kinds`, and bytes per second.

    The rate of bytes, under the key `bytes`, is that of a copy: bytes read plus bytes written, per second.
    """
    side = SIDE[device.type]
    numbers = torch.randint(-1, 2, (side, side), device=device, dtype=torch.int8)
    found = {}
    for kind in sorted(kinds):
        a = numbers.to(getattr(torch, kind))
        product = (lambda a=a: exact_product(a, a, torch.float16)) if a.itemsize == 1 else (lambda a=a: a @ a.t())
        found[kind] = 2 * side**3 / seconds_of(product, _REPEATS, device, warm=True)
    source = torch.randint(256, (COPIED[device.type],), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return found | {"bytes": 2 * len(source) / seconds_of(lambda: target.copy_(source), _REPEATS, device, warm=True)}


def lower_bound(network: nn.Module, data: Dataset, batch: int, images: int, engine: str) -> dict:
    """Returns the least work of an epoch: `operations`, `bytes`, `kernels` and `seconds`, and the `rates` of the device.

    `bytes` and `kernels` are None if they are not counted.

    Args:
        batch: the number of images of a step.
        images: the number of images of an epoch.
        engine: the name of the engine that trains the network.
    """
    device = data.train.labels.device
    counted = engine == "packed" and device.type != "cpu"
    if counted:
        values = "float8_e4m3fn" if has_fp8(device) else "float16"
        works = list(costs.packed(sizes_of(network), batch, values))
    else:
        works = list(products(network, data, batch, "float32" if device.type == "cpu" else "bfloat16"))
    speeds, steps = rates({work.kind for work in works if work.operations}, device), images / batch
    return {
        "operations": steps * sum(work.operations for work in works),
        "bytes": steps * sum(work.bytes for work in works) if counted else None,
        "kernels": steps * len(works) if counted else None,
        "seconds": steps * sum(_seconds(work, speeds) for work in works),
        "rates": speeds,
    }


def _seconds(work: Work, speeds: dict[str, float]) -> float:
    of_operations = work.operations / speeds[work.kind] if work.operations else 0.0
    return max(of_operations, work.bytes / speeds["bytes"])
