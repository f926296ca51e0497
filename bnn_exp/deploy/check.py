"""Whether another form of a network computes what the network does."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnn_exp.errors import UserError
from bnn_exp.nn import BinaryLayer
from bnn_exp.nn.exact import difference
from bnn_exp.records import probe_logits
from bnn_exp.records.terminal import progress

BATCH = 1024


class Evaluating(nn.Module):
    """A module on bits, which evaluates alone."""

    def train(self, mode: bool = True) -> "Evaluating":
        """Raises UserError, unless `mode` is false."""
        if mode:
            raise UserError("a packed network only evaluates\nallowed: bnn_exp.load_model(RUN), which gives one that trains")
        return super().train(False)


@torch.inference_mode()
def predictions(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The classes of images, uint8 [n, …], by a network that gives logits: int64 [n]; the first of equal logits counts."""
    found = []
    with progress("test rows checked", len(images)) as done:
        for batch in images.split(BATCH):
            found.append(network(batch).argmax(1))
            done(len(batch))
    return torch.cat(found)


def check_packed(format: str, network: nn.Module, *names: str) -> None:
    """Raises UserError unless `network` is exactly a packed network of one of the classes `names`."""
    found = difference(network, *names)
    if found or any(isinstance(module, BinaryLayer) for module in network.modules()):
        raise UserError(f"export.format={format}: not with {found or 'a network of real weights'}\nallowed: a packed network")


def check_alike(what: str, form: Callable[[Tensor], Tensor], network: nn.Module, shape: tuple[int, ...]) -> None:
    """Raises UserError if `form` gives other logits than `network` on images of random pixels of `shape`."""
    images = probe_logits.pixels(shape)
    with torch.inference_mode():
        if found := probe_logits.difference(form(images), network(images)):
            raise UserError(f"{what}: {found}, so that it is not exported")


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
