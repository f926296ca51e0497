"""The least work of an epoch, in operations and bytes, and the time that this work takes on this machine.

Only matrix products count as operations. Each weight meets each image three times: in the forward pass, for the weight's
gradient, and for the gradient of the layer's inputs. The first layer needs no gradient of its inputs. Bytes are counted only
for an MLP of bits on a GPU (`bnn_exp.bits.cuda.training`): each kernel reads its inputs once and writes its outputs once.

A product takes the time of its operations or of its bytes, whichever is longer. Any other kernel takes the time of its bytes.
The rates (operations and bytes per second) are measured on matrices that are not all 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from torch import nn

from bnn_exp.commands.benchmark.timing import seconds_of
from bnn_exp.data.dataset import Dataset
from bnn_exp.models import cost
from bnn_exp.models.mlp import MLP

SIDE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices whose product measures the rate of arithmetic
COPIED = {"cpu": 2**28, "cuda": 2**32}  # bytes of the copy that measures the rate of memory
_REPEATS = 5
SUM, PIXEL_SUM = 2, 4  # bytes of a sum that is kept for the backward pass: over bits, and over pixels
INTEGER, REAL, GRADIENT = 4, 4, 2  # bytes of an int32 sum, of a float32 sum, and of a bfloat16 gradient


@dataclass(frozen=True)
class Work:
    """The work of one kernel: arithmetic operations on numbers of the dtype `kind`, and the bytes that it reads and writes.

    A multiplication and an addition count as two operations.
    """

    operations: float
    bytes: float = 0
    kind: str = "float32"


def products(network: nn.Module, data: Dataset, rows: int, kind: str) -> Iterator[Work]:
    """Yields the work of all matrix products of a training step on `rows` images, each product with the dtype `kind`."""
    sample, _ = data.train.batch(torch.arange(2, device=data.train.labels.device))
    for i, layer in enumerate(layer for layer in cost.layers(network, sample) if layer.multiply_adds):
        yield Work(2 * layer.multiply_adds * rows * (3 if i else 2), kind=kind)


def step_of_mlp(network: MLP, rows: int) -> Iterator[Work]:
    """Yields the work of each kernel in a step of an MLP of bits, on a GPU with bfloat16 gradients, for `rows` images."""
    sizes = [network.layers[0].in_features, *(layer.out_features for layer in network.layers)]
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        width, weights, x = 64 * ceil(outputs / 64), inputs * outputs, rows * inputs
        z, bit = rows * width, 1 / 8  # the number of the layer's sums for all images; the bytes of a packed bit
        once = 2 * weights * rows
        yield Work(0, weights * (bit + 1) + (2 * x if i == 0 else x * (bit + 1)))  # turns the weights and the inputs into int8
        yield Work(once, x + weights + INTEGER * z, "int8")
        kept = SUM if i else PIXEL_SUM
        yield Work(0, (INTEGER + kept) * z)  # converts the int32 sums to the dtype that the backward pass reads
        # Reads the sums for BatchNorm's moments, and again for the bits of the next layer.
        yield Work(0, 2 * kept * z + z * bit)
        # BatchNorm's backward pass reads the gradients and the kept sums twice, and writes the gradients at the sums.
        yield Work(0, 2 * (REAL + kept) * z + GRADIENT * z)
        if i:
            yield Work(0, weights * (bit + GRADIENT))
            # The product that gives the gradients at the inputs.
            yield Work(once, GRADIENT * (z + weights) + REAL * x, "bfloat16")
        yield Work(0, x * (GRADIENT + (bit if i else 1)))
        yield Work(once, GRADIENT * (z + x) + REAL * weights, "bfloat16")  # the product that gives the gradients of the weights
        yield Work(0, weights * (REAL + 2 * bit))  # reads the gradients of the weights and flips bits


def rates(kinds: set[str], device: torch.device) -> dict[str, float]:
    """Measures the rates of a device: operations per second of torch's product for each dtype in `kinds`, and bytes per second.

    The rate of bytes, under the key `bytes`, is that of a copy: bytes read plus bytes written, per second.
    """
    side = SIDE[device.type]
    numbers = torch.randint(-1, 2, (side, side), device=device, dtype=torch.int8)
    found = {}
    for kind in sorted(kinds):
        a = numbers.to(getattr(torch, kind))
        product = (lambda a=a: torch._int_mm(a, a.t())) if kind == "int8" else (lambda a=a: a @ a.t())
        found[kind] = 2 * side**3 / seconds_of(product, _REPEATS, device, warm=True)
    source = torch.randint(256, (COPIED[device.type],), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return found | {"bytes": 2 * len(source) / seconds_of(lambda: target.copy_(source), _REPEATS, device, warm=True)}


def lower_bound(network: nn.Module, data: Dataset, batch: int, images: int, engine: str) -> dict:
    """Returns the least `operations`, `bytes` (None if not known) and `seconds` of an epoch, and the `rates` of the device.

    Args:
        batch: the number of images of a step.
        images: the number of images of an epoch.
        engine: the name of the engine that trains the network.
    """
    device = data.train.labels.device
    if engine == "packed" and device.type != "cpu":
        works = list(step_of_mlp(network, batch))
    else:
        works = list(products(network, data, batch, "float32" if device.type == "cpu" else "bfloat16"))
    speeds, steps = rates({work.kind for work in works if work.operations}, device), images / batch
    return {
        "operations": steps * sum(work.operations for work in works),
        "bytes": steps * sum(work.bytes for work in works) or None,
        "seconds": steps * sum(_seconds(work, speeds) for work in works),
        "rates": speeds,
    }


def _seconds(work: Work, speeds: dict[str, float]) -> float:
    of_operations = work.operations / speeds[work.kind] if work.operations else 0.0
    return max(of_operations, work.bytes / speeds["bytes"])
