"""From a run or a network to its packed form."""

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bnn_exp.bits import deployed_state
from bnn_exp.deploy.bncvl import pack_bncvl
from bnn_exp.deploy.mlp import PackedMLP
from bnn_exp.errors import UserError
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.records.model import read_model


def load_packed(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run directory or a `model.safetensors` on bits, in evaluation mode, on the CPU, and what the file says
    of it (see `bnn_exp.load_model`). Its weights are never anything but bits. Its input is pixels, uint8.

    Raises:
        UserError: there is no such file, it is damaged, or the network can't be packed.
    """
    network, state, about = read_model(path)
    return _packed(network, state), about


def pack_network(network: nn.Module) -> nn.Module:
    """As `load_packed`, of a network in memory, which stays as it is.

    Raises:
        UserError: it can't be packed.
    """
    return _packed(copy.deepcopy(network).to("meta"), deployed_state(network))


def _packed(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    if isinstance(network, MLP):
        return PackedMLP(network, state)
    if isinstance(network, BNCVLNet):
        return pack_bncvl(network, state)
    raise UserError(f"model={type(network).__name__.lower()}: can't be packed\nallowed: mlp, bncvl")
