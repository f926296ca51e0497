"""Checks that another form of a network, such as an export, computes what the network computes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnn_exp.errors import UserError
from bnn_exp.nn import BinaryLayer
from bnn_exp.nn.known_classes import difference, is_exactly
from bnn_exp.records import probe_logits
from bnn_exp.records.terminal import progress

BATCH = 1024
FORMS = ("DeployedMLP", "DeployedBNCVL", "DeployedCNN")  # classes of the packed networks that exports can write


class Evaluating(nn.Module):
    """A module that computes on packed bits. It can evaluate, but not train."""

    def train(self, mode: bool = True) -> "Evaluating":
        """Raises UserError if `mode` is True."""
        if mode:
            raise UserError("a packed network only evaluates\nallowed: bnn_exp.load_model(RUN), which returns one that trains")
        return super().train(False)


@torch.inference_mode()
def predictions(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Returns the predicted classes, int64 [n], of images, uint8 [n, …]. Among equal logits the first counts.

    Args:
        network: computes logits of images.
    """
    found = []
    with progress("test rows checked", len(images)) as done:
        for batch in images.split(BATCH):
            found.append(network(batch).argmax(1))
            done(len(batch))
    return torch.cat(found)


def has_a_form(network: nn.Module) -> bool:
    """Returns True if `network` is exactly a packed form of a built-in network."""
    return is_exactly(type(network), *FORMS)


def check_packed(format: str, network: nn.Module, *names: str) -> None:
    """Raises UserError, for the export `format`, unless `network` is exactly a packed network of a class in `names`."""
    found = difference(network, *names)
    if found or any(isinstance(module, BinaryLayer) for module in network.modules()):
        raise UserError(f"export.format={format}: not with {found or 'a network of real weights'}\nallowed: a packed network")


def check_integers(format: str, network: nn.Module, only: str) -> None:
    """Raises UserError, for the export `format`, unless `network` is exactly a packed network that computes in integers.

    Args:
        only: says that the format has only integers, for the message.
    """
    if type(network).__name__ == "DeployedBNCVL":
        raise UserError(
            f"export.format={format}: the network has real activations (model.activation_bits=null), and {only}\n"
            "allowed: export.format=onnx, torch; or train with model.activation_bits=8 or 4, model=vgg or model=mlp"
        )
    check_packed(format, network, "DeployedMLP", "DeployedCNN")


def check_alike(what: str, form: Callable[[Tensor], Tensor], network: nn.Module, shape: tuple[int, ...]) -> None:
    """Raises UserError if the logits of `form`, called `what`, and of `network` differ for random pixels of `shape`."""
    images = probe_logits.pixels(shape)
    with torch.inference_mode():
        if found := probe_logits.difference(form(images), network(images)):
            raise UserError(f"{what}: {found}; nothing is exported")


def check_equal(what: str, got: Tensor, expected: Tensor) -> None:
    """Raises UserError if a prediction in `got` differs from `expected`. The message names the first such image.

    Args:
        what: the checked form of the network, for the message.
        got, expected: the predicted classes, int64 [n].
    """
    if got.shape != expected.shape:
        raise UserError(f"{what}: it gave {len(got)} predictions for {len(expected)} images; nothing is exported")
    different = (got != expected).nonzero().flatten().tolist()
    if different:
        first = different[0]
        raise UserError(
            f"{what}: {len(different)} of {len(expected)} predictions are not those of the packed network; nothing is "
            f"exported; the first is image {first}: class {got[first]} in place of {expected[first]}"
        )
