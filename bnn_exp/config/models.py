"""The networks that a configuration can name: their names, settings and ranges, and the class of each. Imports no torch.

Nothing else knows which networks there are. One of your own joins by `register_model` (docs/add_a_model.md).
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bnn_exp.config import plugins
from bnn_exp.config.registry import Registry, found, home, is_ours, name_of, offer
from bnn_exp.config.schema import Count, Positive, schema
from bnn_exp.errors import UserError


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("even")
    return size


Encoding = Literal["boolean", "bipolar", "centred"]
Weights = Literal["latent", "bits", "float"]
Odd = Annotated[int, Field(ge=1, description="an odd whole number ≥ 1"), AfterValidator(_odd)]


@schema
class BatchNorm:
    affine: bool
    running_stats: bool


@schema
class MLP:
    name: Literal["mlp"]
    hidden_size: Count
    num_layers: Count
    encoding: Encoding
    window: Positive | None
    binarize_logits: bool
    batch_norm: BatchNorm
    weights: Weights

    @property
    def depth(self) -> int:
        return self.num_layers


@schema
class BNCVL:
    name: Literal["bncvl"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    convolutions: Count
    kernel_size: Odd
    pool: Count
    dense: tuple[Count, ...]
    encoding: Encoding
    normalization: Literal["sample", "batch", "channel"]
    weights: Weights
    latent_std: Literal["one", "fan_in"]

    @property
    def depth(self) -> int:
        return len(self.channels) * self.convolutions + len(self.dense) + 1


@schema
class VGG:
    name: Literal["vgg"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    convolutions: Count
    kernel_size: Odd
    encoding: Encoding
    window: Positive | None
    weights: Weights

    @property
    def depth(self) -> int:
        return len(self.channels) * self.convolutions + 1


@dataclass(frozen=True)
class Entry:
    """A network: the dataclass of its settings, and its class, itself or as "module:class", imported when a run needs it."""

    settings: type
    home: str | type

    def load(self) -> type:
        """The class itself."""
        return found(self.home)

    @property
    def ours(self) -> bool:
        """Whether it is part of this package."""
        return is_ours(home(self.settings))


MODELS: Registry[Entry] = Registry("model")  # by the name that model=NAME chooses


def register_model(
    settings: type,
    home: str | type,
    values: Mapping[str, Any] | None = None,
    optimizer: str = "hypermask",
    trainer: str | Mapping[str, Any] = "default",
) -> None:
    """Make a network known under the name that its `settings` have.

    Args:
        settings: a `bnn_exp.schema` dataclass, its first field `name: Literal["NAME"]`, then what can be set. A field
            `weights: bnn_exp.Weights` says that latent optimizers can train it too.
        home: the class, a `torch.nn.Module`, or "module:class". It is called as `Class(image_shape, num_classes, **settings)`,
            image_shape (channels, height, width), with `mean=` and `std=` of the train pixels where it takes these. Its
            `forward` takes uint8 [batch, channels, height, width] and gives logits [batch, classes]. It may have `stages()`,
            `pack()` and more, see docs/add_a_model.md.
        values: of the settings but `name`, in the place of a `conf/model/NAME.yaml`.
        optimizer: the choice of the group `optimizer` that trains it when nothing is said.
        trainer: the choice of the group `trainer` when nothing is said, or settings that differ from `trainer=default`.

    Raises:
        UserError: the name is taken, or `settings` has none.
    """
    name = name_of(settings)
    plugins.note(sys._getframe(1))
    MODELS.add(name, Entry(settings, home), settings, home)
    if values is None:
        return
    weights = {"weights": "${weights_for:${optimizer.name}}"} if "weights" in settings.__dataclass_fields__ else {}
    offer("model", name, {"name": name, **weights, **values})
    offer("optimizer", f"of_{name}", {"defaults": [optimizer]})
    choice, own = (trainer, {}) if isinstance(trainer, str) else ("default", trainer)
    offer("trainer", f"of_{name}", {"defaults": [choice, "_self_"], **own})


def weights_of(settings: Any) -> str:
    """The kind of weights of a network of these `settings`: bits, latent or float; bits where there is no such setting."""
    return getattr(settings, "weights", "bits")


def check_images(settings: Any, size: tuple[int, int]) -> None:
    """See that images of `size` (height, width) survive the pooling of one of our own networks.

    Raises:
        UserError: they do not.
    """
    if not isinstance(settings, BNCVL | VGG):
        return
    pool = getattr(settings, "pool", 2)
    times = len(settings.channels) - isinstance(settings, BNCVL)  # bncvl pools between its widths, vgg after each
    if times and min(size) // pool**times < 1:
        what = "fewer channels, or model.pool=1" if isinstance(settings, BNCVL) else "fewer channels"
        raise UserError(
            f"model.channels={list(settings.channels)}: images of {size[1]}×{size[0]} pixels are too small to be pooled "
            f"{times} times by {pool}\nallowed: {what}"
        )


register_model(MLP, "bnn_exp.models:MLP")
register_model(BNCVL, "bnn_exp.models:BNCVLNet")
register_model(VGG, "bnn_exp.models:VGG")
