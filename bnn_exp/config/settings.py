"""Reads a composed or saved configuration: checks it and returns typed settings. No other module reads raw configuration.

Imports no torch, since a mistake is answered before torch is loaded.
"""

import json
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Union

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, TypeAdapter, ValidationError

from bnn_exp.config import compatibility, mistakes
from bnn_exp.config.datasets import DATASETS, Digits, HubDataset, Local, Rows
from bnn_exp.config.groups import Settings
from bnn_exp.config.keys import Key, keys_of
from bnn_exp.config.migrate import migrated
from bnn_exp.config.models import MODELS
from bnn_exp.config.request import REQUEST, Report, Request, Training
from bnn_exp.config.rules import RULES
from bnn_exp.errors import UserError

__all__ = [
    "REQUEST",
    "Report",
    "Request",
    "Rows",
    "Settings",
    "Training",
    "dataset_settings",
    "known_keys",
    "load_request",
    "load_settings",
    "model_settings",
    "resolved",
]


def load_settings(config: DictConfig | dict[str, Any]) -> Settings:
    """Returns the typed settings of a configuration.

    Args:
        config: a composed configuration without Hydra's own section, or the plain values that a run keeps.

    Raises:
        UserError: the configuration has mistakes. The message names each of them.
    """
    settings = _checked(_settings_type(), config)
    compatibility.check_rule(settings)
    compatibility.check_exchange(settings)
    return settings


def load_request(config: DictConfig) -> Request:
    """Returns the typed settings of a composed configuration that say what the command does.

    Raises:
        UserError: these settings have mistakes. The message names each of them.
    """
    return _checked(Request, config)


def model_settings(values: dict[str, Any]) -> Any:
    """Returns the typed settings of a network from plain values.

    Raises:
        ValueError: the values are not the settings of a network.
    """
    return TypeAdapter(_models()).validate_json(json.dumps(values))


def dataset_settings(values: dict[str, Any]) -> Rows:
    """Returns the typed settings of a dataset from plain values.

    Raises:
        ValueError: the values are not the settings of a dataset.
    """
    return TypeAdapter(_datasets()).validate_json(json.dumps(values))


def resolved(config: DictConfig) -> dict[str, Any]:
    """Returns the plain values of a composed configuration, with every `${…}` replaced by its value.

    Raises:
        UserError: a `${…}` refers to a key that does not exist.
    """
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    return values


def known_keys() -> tuple[Key, ...]:
    """Returns every dotted key of the configuration, for every choice of every group, with the values that the key takes."""
    return _keys(tuple(entry.settings for registry in (RULES, MODELS, DATASETS) for entry in registry.values()))


@cache
def _keys(registered: tuple[type, ...]) -> tuple[Key, ...]:
    """Returns the keys of the configuration, while the classes `registered` are. Pydantic takes 25 ms to list them."""
    return tuple(key for kind in (_settings_type(), Request) for key in keys_of(TypeAdapter(kind).json_schema()))


def _settings_type() -> Any:
    """Returns `Settings` for the rules, networks and datasets that are registered now."""
    generic: Any = Settings
    return generic[_one_of(entry.settings for entry in RULES.values()), _models(), _datasets()]


def _models() -> Any:
    return _one_of(entry.settings for entry in MODELS.values())


def _datasets() -> Any:
    return _one_of([Digits, HubDataset, Local, *(entry.settings for entry in DATASETS.values())])


def _one_of(kinds: Iterable[type]) -> Any:
    """Returns the type of a group whose key `name` chooses one of the dataclasses `kinds`."""
    return Annotated[Union[tuple(kinds)], Field(discriminator="name")]  # noqa: UP007


def _checked(kind: type, config: DictConfig | dict[str, Any]) -> Any:
    raw: Any
    if isinstance(config, DictConfig):
        raw = OmegaConf.to_container(config)
        values = resolved(config)
    else:
        raw = values = migrated(config)
    values = {key: value for key, value in values.items() if (key in REQUEST) == (kind is Request)}
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values))  # strict pydantic accepts no text for a number
    except ValidationError as error:
        known = known_keys()
        # A wrong `delta` is a wrong `optimizer.delta` too. Both give the same message: keep the first.
        found: dict[str, str] = {}
        for mistake in (mistakes.mistake(e, raw, known) for e in error.errors()):
            found.setdefault(mistake.splitlines()[0], mistake)
        raise UserError("\n".join(found.values())) from error
