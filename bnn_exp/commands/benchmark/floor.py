"""What an epoch has to do at the least, in operations and bytes, and how long that takes on this machine.

Operations are those of the products of a training: each weight meets each image forward, for its own gradient, and, but in the
first layer, for that of the layer's inputs. Bytes are counted where the engine's own passes over memory are known: an MLP of
bits on a GPU (`bnn_exp.bits.cuda.training`), of which every kernel reads its inputs once and writes its outputs once. A product
takes the longer of its operations and its bytes; all else its bytes. The rates are measured, on numbers that are not all 0.
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

_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices by whose product a rate is measured
_COPIED = {"cpu": 2**28, "cuda": 2**32}  # bytes
_REPEATS = 5
Z, PIXEL_SUM, INTEGER, REAL, ERROR = 2, 4, 4, 4, 2  # bytes: a sum, one of pixels, a product of integers, of errors, an error


@dataclass(frozen=True)
class Work:
    """`operations` (a multiplication and an addition are two) by numbers of `kind`, on so many bytes."""

    operations: float
    bytes: float = 0
    kind: str = "float32"


def products(network: nn.Module, data: Dataset, rows: int, kind: str) -> Iterator[Work]:
    """The products of a step on `rows` images, all of that kind."""
    sample, _ = data.train.batch(torch.arange(2, device=data.train.labels.device))
    for i, layer in enumerate(layer for layer in cost.layers(network, sample) if layer.multiply_adds):
        yield Work(2 * layer.multiply_adds * rows * (3 if i else 2), kind=kind)


def step_of_mlp(network: MLP, rows: int) -> Iterator[Work]:
    """A step of an MLP of bits on a GPU, with errors in bfloat16: its products, and the bytes that pass between them."""
    sizes = [network.layers[0].in_features, *(layer.out_features for layer in network.layers)]
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        width, weights, x = 64 * ceil(outputs / 64), inputs * outputs, rows * inputs
        z, unpacked = rows * width, 1 / 8  # sums; a bit read
        once = 2 * weights * rows
        yield Work(0, weights * (unpacked + 1) + (2 * x if i == 0 else x * (unpacked + 1)))  # operands of one byte
        yield Work(once, x + weights + INTEGER * z, "int8")
        kept = Z if i else PIXEL_SUM
        yield Work(0, (INTEGER + kept) * z)
        yield Work(0, 2 * kept * z + z / 8)  # moments; bits
        yield Work(0, 2 * (REAL + kept) * z + ERROR * z)  # totals; errors at sums
        if i:
            yield Work(0, weights * (unpacked + ERROR))
            yield Work(once, ERROR * (z + weights) + REAL * x, "bfloat16")
        yield Work(0, x * (ERROR + (unpacked if i else 1)))
        yield Work(once, ERROR * (z + x) + REAL * weights, "bfloat16")
        yield Work(0, weights * (REAL + 2 / 8))  # flips


def rates(kinds: set[str], device: torch.device) -> dict[str, float]:
    """Operations a second of torch's product for each kind, and `bytes` a second, read and written, of a copy."""
    side = _SIDE[device.type]
    numbers = torch.randint(-1, 2, (side, side), device=device, dtype=torch.int8)
    found = {}
    for kind in sorted(kinds):
        a = numbers.to(getattr(torch, kind))
        product = (lambda a=a: torch._int_mm(a, a.t())) if kind == "int8" else (lambda a=a: a @ a.t())
        found[kind] = 2 * side**3 / seconds_of(product, _REPEATS, device, warm=True)
    source = torch.randint(256, (_COPIED[device.type],), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return found | {"bytes": 2 * len(source) / seconds_of(lambda: target.copy_(source), _REPEATS, device, warm=True)}


def floor(network: nn.Module, data: Dataset, batch: int, images: int, engine: str) -> dict:
    """Of an epoch of `images`: `operations`, `bytes` (or null), `seconds`, and the `rates` by which.

    Args:
        batch: of a step.
        engine: that trains the network.
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
