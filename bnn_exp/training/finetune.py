"""Fine-tuning: a network begins with the bits of an earlier run, and some of its layers may stay frozen.

BinSFO (Shibuya et al.) is made for fine-tuning: a device without memory for real weights adapts a network that was trained
elsewhere.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp import models
from bnn_exp.config import rules, zoo
from bnn_exp.config.settings import Settings, load_settings
from bnn_exp.errors import UserError
from bnn_exp.nn import BinaryLayer, binary_layers
from bnn_exp.records.model import read_model
from bnn_exp.records.restore_norms import NORMS, trained_file, trained_network

STAGES = "0, or a network with a method stages() (docs/add_a_model.md)"


@dataclass(frozen=True)
class Beginning:
    """The origin of each layer of a new network, by the names of its layers, and the rule that trains the network."""

    run: str | None  # the earlier run that the bits come from; None if the run begins with new bits
    loaded: list[str]
    anew: list[str]  # the layers that begin with new, random bits
    frozen: list[str]
    rule: str
    rule_of_run: str | None  # the rule that trained the earlier run

    def lines(self) -> list[str]:
        """Describes the beginning for the user, in one or two lines."""
        parts = (("loaded", self.loaded), ("begins anew", self.anew), ("frozen", self.frozen))
        layers = "; ".join(f"{what}: {', '.join(names) or 'nothing'}" for what, names in parts)
        if self.run is None:
            return [layers]
        return [f"init_from={self.run}: {layers}", f"rule: {self.rule}; in the earlier run: {self.rule_of_run}"]


def check(settings: Settings, image_shape: tuple[int, int, int], classes: tuple[str, ...]) -> None:
    """Checks that `init_from`, `fresh` and `freeze` fit the network of `settings`.

    Args:
        image_shape: [channels, height, width].

    Raises:
        UserError: one of the three does not fit.
    """
    network = models.build(settings.model, image_shape, len(classes))
    layers = len(models.stages(network))
    if not hasattr(network, "stages") and (settings.freeze or settings.fresh):
        key, count = ("freeze", settings.freeze) if settings.freeze else ("fresh", settings.fresh)
        raise UserError(f"{key}={count}: model={settings.model.name} does not say what its layers are\nallowed: {STAGES}")
    for name, count in (("freeze", settings.freeze), ("fresh", settings.fresh or 0)):
        if count > layers - (name == "freeze"):
            allowed = f"0 to {layers - (name == 'freeze')}"
            raise UserError(f"{name}={count}: the network has {layers} layers\nallowed: {allowed}")
    if settings.init_from:
        begin(network, settings, classes)


@torch.no_grad()
def begin(network: nn.Module, settings: Settings, classes: tuple[str, ...]) -> Beginning:
    """Copies the bits, BatchNorms and statistics of the run `init_from` into `network`, except into its last `fresh` layers.

    If `fresh` is None, the last layer stays new if the run has other classes; else no layer stays new. Classes in another order
    are matched by name.

    Returns:
        The layers that were loaded, that begin anew, and that are frozen.

    Raises:
        UserError: there is no such run, or its network has other layers.
    """
    if not settings.init_from:
        return _beginning(network, settings)
    source, known, trained = _source(Path(settings.init_from))
    fresh = settings.fresh if settings.fresh is not None else int(set(known) != set(classes))
    if not hasattr(network, "stages") and (fresh or known != tuple(classes)):
        raise UserError(
            f"init_from={settings.init_from}: its classes or their order differ, and model={settings.model.name} does not say "
            f"which layer is the last\nallowed: the classes of the run, or a network with a method stages()"
        )
    ours, theirs = models.stages(network), models.stages(source)
    if len(ours) != len(theirs):
        raise UserError(
            f"init_from={settings.init_from}: it has {len(theirs)} layers\nallowed: a run whose network has {len(ours)} layers"
        )
    reordered = set(known) == set(classes) and known != tuple(classes)
    outputs = [known.index(name) for name in classes] if reordered else None
    for place, (new, old) in enumerate(zip(ours[: len(ours) - fresh], theirs, strict=False), 1):
        for to, original in zip(new, old, strict=True):
            try:
                _copy(to, original, outputs if place == len(ours) else None)
            except (ValueError, RuntimeError) as error:
                anew = len(ours) - place + 1
                others = f"or fresh={anew}" if anew < len(ours) else "on images of its size and channels"
                raise UserError(
                    f"init_from={settings.init_from}: its layer {place} does not fit ({str(error).splitlines()[-1].strip()})\n"
                    f"allowed: the model of the run (without any model=…), {others}"
                ) from error
    return _beginning(network, settings, len(ours) - fresh, trained)


def _beginning(network: nn.Module, settings: Settings, loaded: int = 0, trained: dict | None = None) -> Beginning:
    """Returns the Beginning of a network whose first `loaded` layers come from a run of the configuration `trained`."""
    of_layers = {id(layer): name for name, layer in binary_layers(network)}
    names = [", ".join(of_layers[id(m)] for m in stage if id(m) in of_layers) for stage in models.stages(network)]
    rule_of_run = _in_words(load_settings(trained).optimizer) if trained else None
    parts = (names[:loaded], names[loaded:], names[: settings.freeze])
    return Beginning(settings.init_from, *parts, _in_words(settings.optimizer), rule_of_run)


def _in_words(rule: Any) -> str:
    """Returns a rule and its strength as overrides of the command line."""
    strength = rules.strength(rule)
    return f"optimizer={rule.name}" + (f" optimizer.{strength}={getattr(rule, strength):g}" if strength else "")


def _source(place: Path) -> tuple[nn.Module, tuple[str, ...], dict]:
    """Returns the network of a checkpoint (with BatchNorm statistics), the names of its classes, and its configuration."""
    file = _checkpoint(place)
    _, _, about = read_model(file.with_name("model.safetensors") if file.name == NORMS else file)
    return trained_network(file, about), tuple(about["classes"]), about["config"]


def _checkpoint(place: Path) -> Path:
    """Returns the file of the checkpoint at `place`: the file itself, the last checkpoint of a run, or the file that stands for
    a checkpoint in the zoo."""
    given, place = place, zoo.located(place, "init_from")
    if place.suffix == ".safetensors" or (zoo.holds(place) and not trained_file(place).is_file()):
        raise UserError(
            f"init_from={given}: it has no statistics of BatchNorm, which a training needs\n"
            "allowed: a run, or a file of its checkpoints/"
        )
    if not place.exists():
        raise UserError(f"init_from={place}: no such file or folder\nallowed: a run, or a file of its checkpoints/")
    return trained_file(place) if place.is_dir() else place


def _copy(to: nn.Module, original: Any, outputs: list[int] | None = None) -> None:
    """Copies the state of module `original` to module `to`; output i comes from output `outputs[i]`, if `outputs` is given."""
    state = original.state_dict()
    if isinstance(to, BinaryLayer) and (to.weights == "float") != (original.weights == "float"):
        raise ValueError(f"model.weights={original.weights} there, {to.weights} here")
    if isinstance(to, BinaryLayer) and to.weights == "latent":
        state |= {name: _latent(bits, getattr(to, name)) for name, bits in original.bits().items()}
    if outputs:
        state = {name: tensor[outputs] if tensor.dim() else tensor for name, tensor in state.items()}
    to.load_state_dict(state)


def _latent(bits: Tensor, like: Tensor) -> Tensor:
    """Returns latent weights for `bits`: ± the mean magnitude of the new latent weights `like`."""
    return (2 * bits - 1) * (like.abs().mean() or 1.0)


def freeze(network: nn.Module, count: int) -> list[nn.Module]:
    """Freezes the parameters of the first `count` layers.

    Returns:
        The modules of these layers. The caller must keep the modules in evaluation mode.
    """
    modules = [module for stage in models.stages(network)[:count] for module in stage]
    for module in modules:
        module.requires_grad_(False)
    return modules
