"""Reads the configuration that a run has saved, from the run's directory, config.yaml, model.safetensors or a checkpoint.

Imports no torch, unless the configuration lies in a checkpoint.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bnn_exp.config import plugins, zoo
from bnn_exp.config.settings import Settings, dataset_settings, load_settings
from bnn_exp.errors import UserError
from bnn_exp.records.run_choice import of_several
from bnn_exp.records.runs import metadata


def settings(name: str, place: Path) -> Settings:
    """Returns the settings of a run. Settings that did not exist when the run was made get their defaults.

    Args:
        name: the override that names the run, for messages, such as `config=RUN`.
        place: the directory of a run, or its config.yaml, its model.safetensors or a checkpoint.

    Raises:
        UserError: there is no run, or its configuration is damaged.
    """
    return _checked(name, place, load_settings)


def dataset(name: str, place: Path) -> dict[str, Any]:
    """Returns the plain values of the dataset settings of a run. The arguments and the errors are those of `settings`."""
    return _checked(name, place, lambda values: asdict(dataset_settings(values["dataset"])))


def plugins_of_run(name: str, place: Path) -> list[str]:
    """Returns the setting `plugins` of a run, as a list of entries. The arguments are those of `settings`.

    The list is empty if the configuration of the run cannot be read. A later reader reports this.
    """
    try:
        return plugins.entries(_read(_file(name, place)).get("plugins"))
    except Exception:  # the exceptions of YAML and OmegaConf have no common base class
        return []


def plugins_in(file: Path, beside: Path | None = None) -> list[str]:
    """Returns the setting `plugins` in a YAML file, as a list of entries; empty if the file cannot be read: Hydra reports this.

    Args:
        beside: the file from whose folder relative paths begin; None: the current folder.
    """
    try:
        return plugins.entries(_read(file).get("plugins"), beside)
    except Exception:  # the exceptions of YAML and OmegaConf have no common base class
        return []


def _checked(name: str, place: Path, check: Callable[[dict[str, Any]], Any]) -> Any:
    file = _file(name, place)
    values: dict[str, Any] = {}
    try:
        values = _read(file)
        return check(values)
    except Exception as error:  # the exceptions of YAML and OmegaConf have no common base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        as_written = "allowed: a run directory, or its config.yaml or model.safetensors, as they were written"
        hint = plugins.not_loaded(values.get("plugins")) if isinstance(values, dict) else ""
        raise UserError(f"{name}: not the configuration of a run ({reason[:300]})\n{hint or as_written}") from error


def _file(name: str, place: Path) -> Path:
    """Returns the file at `place` that holds the configuration of a run. `name` is the override that names the run."""
    place = zoo.located(place, name.partition("=")[0])
    if place.is_file() and place.suffix == ".pt" and (place.parent.parent / "config.yaml").is_file():
        place = place.parent.parent
    if place.is_file():
        return place
    files = [place / file for file in ("config.yaml", "model.safetensors") if (place / file).is_file()]
    if not files:
        if several := of_several(name.partition("=")[0], place):
            raise UserError(several)
        reason = "no config.yaml in it" if place.is_dir() else "no such file or folder"
        raise UserError(f"{name}: {reason}\nallowed: the directory of a run, outputs/DATE/TIME-…")
    return files[0]


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == ".pt":  # a checkpoint alone: the configuration of its run is inside
        from bnn_exp.records import checkpoint

        return checkpoint.load(file)["config"]
    if file.suffix != ".safetensors":
        values: Any = OmegaConf.to_container(OmegaConf.load(file))
        return values
    return json.loads(metadata(file)["config"])
