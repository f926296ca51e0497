"""Recognises a network by its logits for a few images of random pixels (the probe), also after a conversion to another form."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ROWS, SEED = 8, 20251126
TOLERANCE = 1e-3  # logits count as equal up to this difference, relative to the largest logit of a row


def pixels(shape: tuple[int, ...], rows: int = ROWS) -> Tensor:
    """Returns images of random pixels, uint8 [rows, *shape]. The pixels are equal on every machine, because NumPy never
    changes this generator."""
    drawn = np.frombuffer(np.random.RandomState(SEED).bytes(rows * math.prod(shape)), np.uint8)
    return torch.from_numpy(drawn.copy()).view(rows, *shape)


@torch.no_grad()
def logits(network: nn.Module, shape: tuple[int, ...], answer: Callable[[Tensor], Tensor] | None = None) -> Tensor | None:
    """Returns the logits of a network for the probe images, float32 [ROWS, classes] on the CPU.

    Uses the evaluation mode, and restores the mode of `network` afterwards.

    Args:
        shape: the shape of an image.
        answer: a function that computes the same logits as `network`, with less memory; None to use `network`.

    Returns:
        None if BatchNorms have no running statistics: the logits then depend on the batch, and ties in a batch depend on the
            processor.
    """
    if any(isinstance(module, _BatchNorm) and not module.track_running_stats for module in network.modules()):
        return None
    training = {module: module.training for module in network.modules()}
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    precision, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        network.eval()
        tensor = next(iter((*network.parameters(), *network.buffers())), torch.empty(0))
        return (answer or network)(pixels(shape).to(tensor.device)).float().cpu()
    finally:
        convolutions.fp32_precision = precision
        for module, mode in training.items():
            module.training = mode


def difference(found: Tensor, expected: Tensor) -> str:
    """Returns a text if the logits `found` differ from `expected` for more than half of the images; else "".

    Another processor adds real numbers in another order. This can, rarely, change a bit of a hidden layer, and then
    all logits of a row. A few rows may therefore differ. Another network differs in almost all rows.
    """
    if found.shape != expected.shape:
        return f"it has {tuple(found.shape)[1:]} logits in place of {tuple(expected.shape)[1:]}"
    largest = expected.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True)
    alike = ((found - expected).abs() <= TOLERANCE * largest) | torch.isclose(found, expected, rtol=0, atol=0, equal_nan=True)
    rows = int((~alike.all(1)).sum())
    return f"other logits on {rows} of {len(expected)} images of random pixels" if 2 * rows > len(expected) else ""
