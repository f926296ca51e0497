"""Finds and checks the files of `experiment=NAME` before Hydra composes them. Hydra would accept some mistakes in silence,
and blame the
wrong place for other mistakes. Imports no torch."""

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
    """Checks that the experiments of a command line are files whose settings take effect.

    Args:
        arguments: the command line as Hydra takes it, without the command.
        groups: the folder `conf/` of this package.

    Returns:
        True if an experiment requests a sweep and the command line does not.

    Raises:
        UserError: a file has a mistake. The message names the first mistake.
    """
    flags = flags_of(arguments)
    chosen = {folder.name for folder in groups.iterdir() if folder.is_dir()} - {"experiment"}
    requested = [_check(file, chosen) for _, file in files(flags.overrides, flags.config_dir, groups)]
    return any(requested) and not flags.multirun and "hydra.mode" not in command_line.keys(flags.overrides)


def files(overrides: Sequence[str], folder: str | None, groups: Path) -> list[tuple[str, Path]]:
    """Returns the name and the file of each experiment that overrides choose. An experiment without a file is left out.

    Args:
        folder: the folder that --config-dir names.
        groups: the folder `conf/` of this package.

    Raises:
        UserError: a name is a path, or its file has another suffix than .yaml.
    """
    others = [folder, *command_line.values(overrides, "hydra.searchpath")]
    folders = [groups, *(Path(other.removeprefix("file://")) for other in others if other)]
    found = [(name, _find(name, folders)) for name in command_line.values(overrides, "experiment") if name.strip("/.")]
    return [(name, file) for name, file in found if file]


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    """Returns the file of the experiment `name`, from the subfolder experiment/ of one of `folders`.

    None if there is no such file. Hydra then reports the name.

    Raises:
        UserError: `name` is a path, or its file has another suffix than .yaml.
    """
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
    """Checks the file of an experiment. Returns True if the file requests a sweep.

    Args:
        groups: the names of the groups that the file may choose from.

    Raises:
        UserError: the file has a mistake.
    """
    try:
        text = file.read_text()
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # Hydra reports a file that cannot be read
        return False
    header = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if not re.fullmatch(r"#\s*@package\s+_global_", header):
        raise UserError(
            f"{file}: its first line is not `{FIRST}`, without which the file sets nothing\n"
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
    """Yields (place, key, value) of each entry that may choose a member of a group.

    `place` is `defaults` for an entry of the list `defaults`, and `file` for an entry at the top level of the file.

    Args:
        content: the values of an experiment's file.
    """
    for entry in content.get("defaults") or []:
        if isinstance(entry, dict):
            yield from (("defaults", str(key), value) for key, value in entry.items())
    yield from (("file", str(key), value) for key, value in content.items())
