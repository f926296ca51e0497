"""The registry of networks: the settings, the class and the default training of each network."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bnn_exp.config import plugins
from bnn_exp.config.registry import Registry, fields_of, found, home, is_ours, name_of, offer
from bnn_exp.errors import UserError


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("even")
    return size


Encoding = Literal["boolean", "bipolar", "centred"]
Weights = Literal["latent", "bits", "float"]
Odd = Annotated[int, Field(ge=1, description="an odd whole number ≥ 1"), AfterValidator(_odd)]


@dataclass(frozen=True)
class Entry:
    """A registered network.

    Args:
        settings: the dataclass of the network's settings.
        home: the class of the network, or its name as "module:class", which is imported when a run needs the class.
    """

    settings: Any
    home: str | type

    def load(self) -> type:
        """Returns the class of the network."""
        return found(self.home)

    @property
    def ours(self) -> bool:
        """True if the network is part of this package."""
        return is_ours(home(self.settings))


MODELS: Registry[Entry] = Registry("model")  # model=NAME chooses an entry


def register_model(
    settings: Any,
    home: str | type,
    values: Mapping[str, Any] | None = None,
    optimizer: str = "hypermask",
    trainer: str | Mapping[str, Any] = "default",
) -> None:
    """Registers a network under the name that its `settings` have.

    Args:
        settings: a `bnn_exp.schema` dataclass. Its first field is `name: Literal["NAME"]`; the other fields can be set. With a
            field `weights: bnn_exp.Weights` latent optimizers can train the network too. The class may also have any of these:
            `depth` (int): the number of layers with weights. A model file with fewer tensors is then refused.
            `check_images(size)`: raises UserError if images of `size` (height, width) do not suit the network.
            `binary_activations`, `real_parameters` (bool): False if the network has none; a setting without effect is refused.
            `packed_training` (bool): True for `MLP` alone. The packed engine computes with the attributes of that class.
        home: the class, a `torch.nn.Module`, or "module:class". It is called as `Class(image_shape, num_classes, **settings)`
            with image_shape (channels, height, width). An `__init__` with the arguments `mean` and `std` gets the statistics of
            the train pixels. `forward` takes uint8 [batch, channels, height, width] and returns logits [batch, classes].
            docs/add_a_model.md lists the optional methods, such as `stages()` and `pack()`.
        values: the values of all settings except `name`. None: they are in `conf/model/NAME.yaml`.
        optimizer: the choice of the group `optimizer` that trains the network by default.
        trainer: the default choice of the group `trainer`, or the settings that differ from `trainer=default`.

    Raises:
        UserError: the name is taken, or `settings` has no name.
    """
    name = name_of(settings)
    plugins.note(sys._getframe(1))
    MODELS.add(name, Entry(settings, home), settings, home)
    if values is not None:
        weights = {"weights": "${weights_for:${optimizer.name}}"} if "weights" in fields_of(settings) else {}
        offer("model", name, {"name": name, **weights, **values})
    train_by(name, optimizer, trainer)


def train_by(model: str, optimizer: str, trainer: str | Mapping[str, Any] = "default") -> None:
    """Sets the default training of the choice `model` of the group `model`. See `register_model` for the arguments."""
    choice, own = (trainer, {}) if isinstance(trainer, str) else ("default", trainer)
    offer("optimizer", f"of_{model}", {"defaults": [optimizer]})
    offer("trainer", f"of_{model}", {"defaults": [choice, "_self_"], **own})


def weights_of(settings: Any) -> str:
    """Returns the kind of weights of a network with these `settings`: bits, latent or float. Bits is the default."""
    return getattr(settings, "weights", "bits")


def check_images(settings: Any, size: tuple[int, int]) -> None:
    """Checks that images of `size` (height, width) suit the network. Networks without such a check take all images.

    Raises:
        UserError: the images are too small.
    """
    if check := getattr(settings, "check_images", None):
        check(size)


def check_pooling(channels: tuple[int, ...], size: tuple[int, int], times: int, by: int, allowed: str) -> None:
    """Checks that an image has a pixel left after all poolings.

    Args:
        channels: the setting that decides the number of poolings, for the message.
        size: (height, width) of the images.
        times: the number of poolings.
        by: the side of a pooling window, in pixels.
        allowed: the text of the second line of the message: what the user can change.

    Raises:
        UserError: the images are too small.
    """
    if min(size) < by**times:
        raise UserError(
            f"model.channels={list(channels)}: images of {size[1]}×{size[0]} pixels are too small to be pooled "
            f"{times} times by {by}\nallowed: {allowed}"
        )
