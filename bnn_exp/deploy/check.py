"""Whether another form of a network predicts as the network does."""

from collections.abc import Callable

import torch
from torch import Tensor

from bnn_exp.errors import UserError

BATCH = 1024


@torch.inference_mode()
def predictions(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The classes of images, uint8 [n, …], by a network that gives logits: int64 [n]; the first of equal logits counts."""
    return torch.cat([network(batch).argmax(1) for batch in images.split(BATCH)])


def check_equal(what: str, got: Tensor, expected: Tensor) -> None:
    """Raises UserError, naming the first image and its two classes, unless all predictions are the expected ones."""
    if got.shape != expected.shape:
        raise UserError(f"{what}: it gave {len(got)} predictions for {len(expected)} images, so that it is not exported")
    different = (got != expected).nonzero().flatten().tolist()
    if different:
        first = different[0]
        raise UserError(
            f"{what}: {len(different)} of {len(expected)} predictions are not those of the packed network, so that it is not "
            f"exported; the first is image {first}: class {got[first]} in place of {expected[first]}"
        )
