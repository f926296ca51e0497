"""Makes a loaded network trainable: its BatchNorms get the running statistics that the model file lacks.

A `model.safetensors` holds only the scale and the shift of a BatchNorm, which evaluation needs. Training needs the statistics
and the parameters, which are in the checkpoint beside the file. The start of a training reads it, so loading stays fast.
A network of the zoo has no checkpoint, but a small file `norms.safetensors` with all its tensors that are not bits.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bnn_exp import models
from bnn_exp.bits import deployed_state, load_state
from bnn_exp.config.models import weights_of
from bnn_exp.config.settings import model_settings
from bnn_exp.errors import UserError
from bnn_exp.nn.norm import running_norms
from bnn_exp.records import checkpoint, runs

NORMS = "norms.safetensors"


def trainable(network: nn.Module, file: Path, about: dict[str, Any]) -> nn.Module:
    """Returns `network`. Its first `train()` will restore its BatchNorms, which hold only scales and shifts.

    Args:
        file: the file of the network, a `model.safetensors` or a checkpoint.
        about: the description of the network in the file.
    """
    if any(True for _ in running_norms(network)):
        state = {name: tensor.clone() for name, tensor in _scales(network).items()}
        network.train = partial(_train, network, file, about, state)  # type: ignore[method-assign]
    return network


def _train(network: nn.Module, file: Path, about: dict[str, Any], state: dict[str, Tensor], mode: bool = True) -> nn.Module:
    """Does the same as `nn.Module.train`, but restores the BatchNorms before the first training.

    The arguments before `mode` are those of `trainable`, and the saved scales and shifts.

    Raises:
        UserError: the checkpoint of this network is missing.
    """
    if mode:
        _restore(network, _trained(file, about, state))
        del network.train  # from now on the method of the class applies
    return nn.Module.train(network, mode)


def _trained(file: Path, about: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """Returns the network of the checkpoint that belongs to `file`. `state` are the scales and shifts in `file`.

    Raises:
        UserError: the checkpoint is missing or holds another network.
    """
    source = file if file.suffix == ".pt" else trained_file(runs.run_of(file))
    if not source.is_file():
        raise UserError(
            f"{file}: it has no statistics of BatchNorm, which a training needs\nallowed: a run with its checkpoints/"
        )
    try:
        network = trained_network(source, about)
        same = all(tensor.equal(state[name]) for name, tensor in deployed_state(network).items() if name in state)
    except (KeyError, ValueError, RuntimeError):
        same = False
    if not same:
        raise UserError(f"{source}: the checkpoint of another network than {file}\nallowed: a run as it was written")
    return network


def trained_file(run: Path) -> Path:
    """Returns the file in the directory `run` from which `trained_network` reads. The file may be missing."""
    return run / NORMS if (run / NORMS).is_file() else run / "checkpoints/last.pt"


def trained_network(source: Path, about: dict[str, Any]) -> nn.Module:
    """Returns the network of a checkpoint, or of `norms.safetensors` and the model file beside it, with all statistics.

    The second network stores bits, also if a rule on latent weights has trained it.

    Args:
        about: the description of the network in its file.

    Raises:
        UserError: the checkpoint can't be read.
        KeyError, ValueError, RuntimeError: the file holds another network.
    """
    settings = model_settings(about["config"]["model"])
    if source.name != NORMS:
        state = checkpoint.load(source)["network"]
    else:
        state = load_file(source.with_name("model.safetensors")) | load_file(source)
        settings = replace(settings, weights="bits") if weights_of(settings) == "latent" else settings
    network = models.build(settings, tuple(about["image_shape"]), len(about["classes"]))
    load_state(network, state)
    return network


def _scales(network: nn.Module) -> dict[str, Tensor]:
    """Returns the scales and shifts of the BatchNorms in `network`, by parameter name."""
    return {
        f"{name}.{own}" if name else own: getattr(norm, own).detach()
        for name, norm in running_norms(network)
        for own in ("weight", "bias")
    }


@torch.no_grad()
def _restore(network: nn.Module, trained: nn.Module) -> None:
    """Copies the parameters and statistics of the BatchNorms of `trained` into the BatchNorms of `network`. The copies are in
    place, because an optimizer may hold the parameters."""
    for (_, norm), (_, real) in zip(running_norms(network), running_norms(trained), strict=True):
        norm.eps, norm.momentum = real.eps, real.momentum
        norm.weight.copy_(torch.ones_like(norm.weight) if real.weight is None else real.weight)
        norm.bias.copy_(torch.zeros_like(norm.bias) if real.bias is None else real.bias)
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            getattr(norm, statistic).copy_(getattr(real, statistic))
