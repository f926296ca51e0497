"""A loaded network that can go on training: its BatchNorms get back what its file left out.

A `model.safetensors` holds of a BatchNorm the scale and shift that evaluation needs. Training needs its statistics and its
parameters, which are in the checkpoint beside the file. They are read when training begins, so that loading costs nothing.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp import models
from bnn_exp.bits import deployed_state, load_state
from bnn_exp.config.settings import model_settings
from bnn_exp.errors import UserError
from bnn_exp.nn.norm import running_norms
from bnn_exp.records import checkpoint, runs


def trainable(network: nn.Module, file: Path, about: dict[str, Any]) -> nn.Module:
    """Returns the loaded `network`, whose first `train()` puts real BatchNorms in the place of scales and shifts.

    Args:
        file: what it was loaded from, a `model.safetensors` or a checkpoint.
        about: what the file says of it.
    """
    if any(True for _ in running_norms(network)):
        state = {name: tensor.clone() for name, tensor in _scales(network).items()}
        network.train = partial(_train, network, file, about, state)  # type: ignore[method-assign]
    return network


def _train(network: nn.Module, file: Path, about: dict[str, Any], state: dict[str, Tensor], mode: bool = True) -> nn.Module:
    """Does what `nn.Module.train` does; before the first training it restores the norms.

    Raises:
        UserError: there is no checkpoint of this network.
    """
    if mode:
        _restore(network, _trained(file, about, state))
        del network.train  # the method of its class from now on
    return nn.Module.train(network, mode)


def _trained(file: Path, about: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """The network of the checkpoint that belongs to `file`."""
    source = file if file.suffix == ".pt" else runs.run_of(file) / "checkpoints/last.pt"
    if not source.is_file():
        raise UserError(
            f"{file}: it has no statistics of BatchNorm, which a training goes on from\nallowed: a run with its checkpoints/"
        )
    network = models.build(model_settings(about["config"]["model"]), tuple(about["image_shape"]), len(about["classes"]))
    try:
        load_state(network, checkpoint.load(source)["network"])
        same = all(tensor.equal(state[name]) for name, tensor in deployed_state(network).items() if name in state)
    except (KeyError, ValueError, RuntimeError):
        same = False
    if not same:
        raise UserError(f"{source}: the checkpoint of another network than {file}\nallowed: a run as it was written")
    return network


def _scales(network: nn.Module) -> dict[str, Tensor]:
    """The scales and shifts of the norms, by the names of the parameters that hold them."""
    return {
        f"{name}.{own}" if name else own: getattr(norm, own).detach()
        for name, norm in running_norms(network)
        for own in ("weight", "bias")
    }


@torch.no_grad()
def _restore(network: nn.Module, trained: nn.Module) -> None:
    """Give the norms of `network` the numbers of those of `trained`, in place: an optimizer may hold the parameters."""
    for (_, norm), (_, real) in zip(running_norms(network), running_norms(trained), strict=True):
        norm.eps, norm.momentum = real.eps, real.momentum
        norm.weight.copy_(torch.ones_like(norm.weight) if real.weight is None else real.weight)
        norm.bias.copy_(torch.zeros_like(norm.bias) if real.bias is None else real.bias)
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            getattr(norm, statistic).copy_(getattr(real, statistic))
