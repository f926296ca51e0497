"""From a run or a network to its packed form."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.bits import deployed_state
from bnn_exp.deploy.bncvl import pack_bncvl
from bnn_exp.deploy.layers import with_packed_layers
from bnn_exp.deploy.mlp import PackedMLP
from bnn_exp.errors import UserError, reason
from bnn_exp.nn import binary_layers
from bnn_exp.nn.exact import altered, difference, home, is_exactly
from bnn_exp.records import probe_logits
from bnn_exp.records.model import check_probe, load_model, read_model

ALLOWED = "allowed: exactly the networks that model=mlp and model=bncvl build, or one with a method pack()"
# The errors of a network that was altered: a layer too many, none, a tied one, or one of another kind or size
ALTERED = (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
_FORMS = {"MLP": PackedMLP, "BNCVLNet": pack_bncvl}  # by the name of the class, exactly


def load_packed(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run directory or a `model.safetensors` on bits, in evaluation mode, on the CPU, and what the file says
    of it (see `bnn_exp.load_model`). Its weights are never anything but bits. Its input is pixels, uint8.

    Raises:
        UserError: there is no such file, it is damaged, the network can't be packed, or its packed form gives other logits than
            the network that was saved.
    """
    network, state, about = read_model(path)
    packed = _packed(network, state)
    check_probe(path, packed, about)
    return packed, about


def load_deployed(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Does what `load_packed` does. A network that has no packed form comes with layers that keep their weights packed.

    Raises:
        UserError: as `load_packed`, but for a missing packed form.
    """
    network, state, about = read_model(path)
    has_form = is_exactly(type(network), *_FORMS) or not why_no_pack(network)
    deployed = _packed(network, state) if has_form else with_packed_layers(load_model(path)[0], state)
    check_probe(path, deployed, about)
    return deployed, about


def pack_network(network: nn.Module, image_shape: tuple[int, int, int] | None = None) -> nn.Module:
    """Returns the packed form of a network in memory, as `load_packed` does of a file. The network stays as it is.

    Args:
        image_shape: (channels, height, width) of the images of a network of one's own, which is asked for its logits.

    Raises:
        UserError: it can't be packed, or its packed form gives other logits.
    """
    _check(network)
    ours = is_exactly(type(network), *_FORMS)
    if not ours and image_shape is None:
        name = home(type(network))
        raise UserError(f"{name}: pack_network needs the shape of an image\nallowed: image_shape=(channels, height, width)")
    try:
        shape = image_shape or _image_shape(network)
        packed = _packed(copy.deepcopy(network).to("meta" if ours else "cpu"), deployed_state(network))
        found = probe_logits.difference(probe_logits.logits(packed, shape), probe_logits.logits(network, shape))
    except ALTERED as error:
        raise UserError(f"{home(type(network))} can't be packed: {reason(error)}\n{ALLOWED}") from error
    if found:
        raise UserError(f"{home(type(network))}: its packed form gives {found}, so that it is not packed")
    return packed


def _packed(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    _check(network)
    if is_exactly(type(network), *_FORMS):
        return _FORMS[type(network).__name__](network, state)
    name = home(type(network))
    try:
        packed = network.pack(state)
    except UserError:
        raise
    except Exception as error:  # of somebody's own code
        raise UserError(f"{name}.pack failed: {reason(error)}\n{ALLOWED}") from error
    if not isinstance(packed, nn.Module) or any(layer.weight.dtype != torch.uint8 for _, layer in binary_layers(packed)):
        raise UserError(
            f"{name}.pack returns no packed network\nallowed: a module without float weights, see with_packed_layers"
        )
    return packed.eval().requires_grad_(False)


def why_no_pack(network: nn.Module) -> str:
    """Says why the network has no packed form by a method `pack` of its own; "" where it has one."""
    definer = {name: next((kind for kind in type(network).__mro__ if name in vars(kind)), None) for name in ("pack", "forward")}
    if definer["pack"] is None:
        return "it has no method pack()"
    if issubclass(definer["forward"], definer["pack"]) and definer["forward"] is not definer["pack"]:
        return f"its forward is not that of {home(definer['pack'])}, whose pack() it has"
    return altered(network)


def _check(network: nn.Module) -> None:
    """Refuse a network that has no packed form."""
    name = home(type(network))
    ours = is_exactly(type(network), *_FORMS)
    if found := difference(network, *_FORMS) if ours else why_no_pack(network):
        raise UserError(f"{name} can't be packed: {found}\n{ALLOWED}")
    others = {tensor.dtype for tensor in network.state_dict().values() if tensor.is_floating_point()} - {torch.float32}
    if others:
        raise UserError(f"{name} can't be packed: it computes in {', '.join(map(str, others))}\nallowed: float32")
    if any(layer.weights == "float" for _, layer in binary_layers(network)):
        raise UserError("model.weights=float: there are no bits, so that it can't be packed\nallowed: bits, latent")


def _image_shape(network: nn.Module) -> tuple[int, ...]:
    """The shape of an image that `network`, one of `_FORMS`, takes: a convolutional one takes all that survive its pooling."""
    if type(network).__name__ == "MLP":
        return (network.layers[0].in_features,)
    first, poolings = network.convolutions[0], (len(network.convolutions) - 1) // network.depth
    side = max(8, network.pool**poolings)
    return (first.in_channels, side, side)
