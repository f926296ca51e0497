"""Packs trained networks, from a run, a file or memory."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.bits import deployed_state
from bnn_exp.deploy.bncvl import pack_bncvl
from bnn_exp.deploy.cnn import pack_codes, pack_vgg
from bnn_exp.deploy.layers import refuse_floats, with_packed_layers
from bnn_exp.deploy.mlp import DeployedMLP
from bnn_exp.errors import UserError, reason
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.nn import binary_layers
from bnn_exp.nn.known_classes import altered, difference, home, is_exactly
from bnn_exp.nn.requantize import NoIntegers
from bnn_exp.records import probe_logits
from bnn_exp.records.model import check_probe, load_model, model_file, read_model

ALLOWED = "allowed: exactly the networks that model=mlp, bncvl and vgg build, or one with a method pack()"
# Packing raises these if a network was altered, for example has one layer too many, or a layer of another kind or size
ALTERED = (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)


def _pack_bncvl(network: BNCVLNet, state: dict[str, Tensor]) -> nn.Module:
    return pack_bncvl(network, state) if network.activation_bits is None else pack_codes(network, state)


# The functions that make packed forms, by the name of the network's class. A subclass has no entry.
_FORMS = {"MLP": DeployedMLP, "BNCVLNet": _pack_bncvl, "VGG": pack_vgg}


def load_packed(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads the network of a run directory or a `model.safetensors` as packed bits, in evaluation mode, on the CPU.

    The weights are never unpacked as a whole. The input of the network is pixels, uint8.

    Returns:
        The packed network, and the facts about it that the file stores (see `bnn_exp.load_model`).

    Raises:
        UserError: there is no such file, it is damaged, the network can't be packed, or its packed form gives other logits than
            the saved network.
    """
    network, state, about = read_model(path)
    try:
        packed = _packed(network, state, tuple(about["image_shape"]))
    except NoIntegers as error:
        raise NoIntegers(f"{model_file(path)}: {error}") from error
    check_probe(path, packed, about)
    return packed, about


def load_deployed(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a network as `load_packed` does. A network without a packed form gets layers with packed weights instead.

    Raises:
        UserError: see `load_packed`. A missing packed form is no error here.
    """
    network, state, about = read_model(path)
    try:
        has_form = is_exactly(type(network), *_FORMS) or not why_no_pack(network)
        deployed = _packed(network, state, tuple(about["image_shape"])) if has_form else None
    except NoIntegers:
        deployed = None
    deployed = deployed or with_packed_layers(load_model(path)[0], state)
    check_probe(path, deployed, about)
    return deployed, about


def why_no_integers(path: str | Path) -> str:
    """Returns why the network of a run or a file has no form in integers; "" for any other network."""
    try:
        load_packed(path)
    except NoIntegers as error:
        return str(error)
    except UserError:
        pass
    return ""


def pack_network(network: nn.Module, image_shape: tuple[int, int, int] | None = None) -> nn.Module:
    """Returns the packed form of a network in memory, as `load_packed` does for a file. `network` stays unchanged.

    Args:
        image_shape: (channels, height, width) of the images. Only a plugin's network needs this shape, for the comparison of
            the logits of both forms.

    Raises:
        UserError: the network can't be packed, or its packed form gives other logits.
    """
    _check(network)
    ours = is_exactly(type(network), *_FORMS)
    if not ours and image_shape is None:
        name = home(type(network))
        raise UserError(f"{name}: pack_network needs the shape of an image\nallowed: image_shape=(channels, height, width)")
    try:
        shape = image_shape or network.suitable_shape()
        packed = _packed(copy.deepcopy(network).to("meta" if ours else "cpu"), deployed_state(network), image_shape)
        found = probe_logits.difference(probe_logits.logits(packed, shape), probe_logits.logits(network, shape))
    except ALTERED as error:
        raise UserError(f"{home(type(network))} can't be packed: {reason(error)}\n{ALLOWED}") from error
    if found:
        raise UserError(f"{home(type(network))} can't be packed: its packed form gives {found}")
    return packed


def _packed(network: nn.Module, state: dict[str, Tensor], image_shape: tuple[int, ...] | None) -> nn.Module:
    _check(network)
    if is_exactly(type(network), *_FORMS):
        packed = _FORMS[type(network).__name__](network, state)
        if image_shape and packed.image_shape is None:  # of an MLP, which takes pictures of any shape
            packed.image_shape = tuple(image_shape)
        return packed
    name = home(type(network))
    try:
        packed = network.pack(state)
    except UserError:
        raise
    except Exception as error:  # code of a plugin may raise anything
        raise UserError(f"{name}.pack failed: {reason(error)}\n{ALLOWED}") from error
    if not isinstance(packed, nn.Module) or any(layer.weight.dtype != torch.uint8 for _, layer in binary_layers(packed)):
        raise UserError(
            f"{name}.pack returns no packed network\nallowed: a module without float weights, see with_packed_layers"
        )
    return packed.eval().requires_grad_(False)


def why_no_pack(network: nn.Module) -> str:
    """Returns why the method `pack` of a network's class can't pack the network; "" if it can.

    The class that defines `pack` must define `forward` too, or inherit it: a subclass with another `forward` computes
    something else.
    """
    definer = {name: next((kind for kind in type(network).__mro__ if name in vars(kind)), None) for name in ("pack", "forward")}
    if definer["pack"] is None:
        return "it has no method pack()"
    if issubclass(definer["forward"], definer["pack"]) and definer["forward"] is not definer["pack"]:
        return f"its forward is not that of {home(definer['pack'])}, whose pack() it has"
    return altered(network)


def _check(network: nn.Module) -> None:
    """Raises UserError if the network has no packed form."""
    name = home(type(network))
    ours = is_exactly(type(network), *_FORMS)
    if found := difference(network, *_FORMS) if ours else why_no_pack(network):
        raise UserError(f"{name} can't be packed: {found}\n{ALLOWED}")
    others = {tensor.dtype for tensor in network.state_dict().values() if tensor.is_floating_point()} - {torch.float32}
    if others:
        raise UserError(f"{name} can't be packed: it computes in {', '.join(map(str, others))}\nallowed: float32")
    for _, layer in binary_layers(network):
        refuse_floats(layer)
