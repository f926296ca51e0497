"""Checks the files of `experiment=NAME` before Hydra composes them, which says of their mistakes only what follows from them.
Imports no torch."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from bnn_exp.config import command_line
from bnn_exp.config.argv import flags_of
from bnn_exp.config.paths import is_file
from bnn_exp.errors import UserError

FIRST = "# @package _global_"


def check(arguments: Sequence[str], groups: Path) -> bool:
    """Sees that the experiments of a command line are files that set what they seem to set.

    Returns whether one of them asks for a sweep that the command line does not ask for.

    Args:
        groups: the folder of our own configuration.

    Raises:
        UserError: the first mistake, with its file.
    """
    flags = flags_of(arguments)
    chosen = {folder.name for folder in groups.iterdir() if folder.is_dir()} - {"experiment"}
    asked = [_check(file, chosen) for _, file in files(flags.overrides, flags.config_dir, groups)]
    return any(asked) and not flags.multirun and "hydra.mode" not in command_line.keys(flags.overrides)


def files(overrides: Sequence[str], folder: str | None, groups: Path) -> list[tuple[str, Path]]:
    """Returns the experiments that overrides name, each with its file, as far as there is one.

    Args:
        folder: that of --config-dir.
        groups: the folder of our own configuration.

    Raises:
        UserError: a name that is a path, or a file of another suffix.
    """
    others = [folder, *command_line.values(overrides, "hydra.searchpath")]
    folders = [groups, *(Path(other.removeprefix("file://")) for other in others if other)]
    found = [(name, _find(name, folders)) for name in command_line.values(overrides, "experiment") if name.strip("/.")]
    return [(name, file) for name, file in found if file]


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    """Returns the file of an experiment; None where Hydra will say that there is none."""
    places = [folder / "experiment" / name.removesuffix(".yaml") for folder in folders]
    for place in places:
        if is_file(file := place.with_name(f"{place.name}.yaml")):
            return file
    for place in places:
        other = place if place.suffix == ".yml" else place.with_name(f"{place.name}.yml")
        if is_file(other):
            raise UserError(f"experiment={name}: {other} is not read\nallowed: the name {other.stem}.yaml")
    if "/" in name and is_file(file := Path(name)):
        folder = file.parent.parent if file.parent.name == "experiment" else Path("FOLDER")
        moved = "" if file.parent.name == "experiment" else f", the file in {folder}/experiment/"
        raise UserError(f"experiment={name}: a path\nallowed: --config-dir {folder} experiment={file.stem}{moved}")
    return None


def _check(file: Path, groups: Collection[str]) -> bool:
    """Refuses a mistake. Returns whether the file asks for a sweep."""
    try:
        text = file.read_text()
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # Hydra refuses it
        return False
    header = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if not re.fullmatch(r"#\s*@package\s+_global_", header):
        raise UserError(
            f"{file}: its first line is not `{FIRST}`, without which it sets nothing of the run\n"
            f"allowed: `{FIRST}` as the first line, above comments too"
        )
    if not isinstance(content, dict | None):
        raise UserError(f"{file}: not settings\nallowed: KEY: VALUE, as in conf/experiment/")
    for where, key, value in _choices(content or {}):
        group = key.removeprefix("override ").strip().strip("/")
        if group in groups and isinstance(value, str) and (where, key) != ("defaults", f"override /{group}"):
            raise UserError(
                f"{file}: `{key}: {value}` does not choose the {group}\nallowed: `- override /{group}: {value}` in `defaults:`"
            )
    own = (content or {}).get("hydra")
    return isinstance(own, dict) and own.get("mode") == "MULTIRUN"


def _choices(content: dict) -> Iterator[tuple[str, str, Any]]:
    """Yields (place, key, value) of what may be the choice of a group: `defaults`, or the file itself."""
    for entry in content.get("defaults") or []:
        if isinstance(entry, dict):
            yield from (("defaults", str(key), value) for key, value in entry.items())
    yield from (("file", str(key), value) for key, value in content.items())
