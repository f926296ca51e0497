"""Fine-tuning: a network that begins with the bits of an earlier run, with some of its layers kept as they are.

What BinSFO is for: a network trained elsewhere, adapted on a device that has no room for real weights (Shibuya et al.).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from bnn_exp import models
from bnn_exp.bits import load_state
from bnn_exp.config import Settings, model
from bnn_exp.errors import UserError
from bnn_exp.nn import BinaryLayer
from bnn_exp.records import checkpoint
from bnn_exp.records.model import read_model


def check(settings: Settings, image_shape: tuple[int, int, int], classes: tuple[str, ...]) -> None:
    """See that `init_from`, `fresh` and `freeze` fit the network of `settings`.

    Raises:
        UserError: what does not.
    """
    network = models.build(settings.model, image_shape, len(classes))
    layers = len(network.stages())
    for name, count in (("freeze", settings.freeze), ("fresh", settings.fresh or 0)):
        if count > layers - (name == "freeze"):
            allowed = f"0 to {layers - (name == 'freeze')}"
            raise UserError(f"{name}={count}: the network has {layers} layers\nallowed: {allowed}")
    if settings.init_from:
        begin(network, settings, classes)


@torch.no_grad()
def begin(network: nn.Module, settings: Settings, classes: tuple[str, ...]) -> None:
    """Give `network` the bits, BatchNorms and statistics of `init_from`, but for its last `fresh` layers. When nothing is said
    these are the last one if the classes are others, else none.

    Raises:
        UserError: there is no such run, or its network has other layers.
    """
    source, known = _source(Path(settings.init_from))
    fresh = settings.fresh if settings.fresh is not None else int(known != classes)
    ours, theirs = network.stages(), source.stages()
    if len(ours) != len(theirs):
        raise UserError(
            f"init_from={settings.init_from}: it has {len(theirs)} layers\nallowed: a model of {len(ours)}, as here"
        )
    for place, (new, old) in enumerate(zip(ours[: len(ours) - fresh], theirs, strict=False), 1):
        for to, original in zip(new, old, strict=True):
            try:
                _copy(to, original)
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"init_from={settings.init_from}: its layer {place} does not fit ({str(error).splitlines()[-1].strip()})\n"
                    f"allowed: a model of the same layers, or fresh={len(ours) - place + 1}"
                ) from error


def _source(run: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """The network of a run as its checkpoint has it, statistics included, and its classes."""
    if not run.is_dir():
        raise UserError(f"init_from={run}: no such folder\nallowed: the directory of a run")
    _, _, about = read_model(run)
    network = models.build(model(about["config"]["model"]), tuple(about["image_shape"]), len(about["classes"]))
    load_state(network, checkpoint.load(run / "checkpoints" / "last.pt")["network"])
    return network, tuple(about["classes"])


def _copy(to: nn.Module, original: nn.Module) -> None:
    state = original.state_dict()
    if isinstance(to, BinaryLayer) and (to.weights == "float") != (original.weights == "float"):
        raise ValueError(f"model.weights={original.weights} there, {to.weights} here")
    if isinstance(to, BinaryLayer) and to.weights == "latent":
        state |= {name: _latent(bits, getattr(to, name)) for name, bits in original.bits().items()}
    to.load_state_dict(state)


def _latent(bits: Tensor, like: Tensor) -> Tensor:
    """Latents that stand for `bits`: as far from 0 as those of a new layer are in the mean, all alike."""
    return (2 * bits - 1) * (like.abs().mean() or 1.0)


def freeze(network: nn.Module, count: int) -> list[nn.Module]:
    """Take the first `count` layers out of training, and return their modules, which are to stay in evaluation mode."""
    modules = [module for stage in network.stages()[:count] for module in stage]
    for module in modules:
        module.requires_grad_(False)
    return modules
