"""Reads and writes overrides (KEY=VALUE), and reads the flags of Hydra that say where the configuration lies.

Imports no torch.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from bnn_exp.errors import UserError


def keys(overrides: Iterable[str]) -> dict[str, str]:
    """Returns the keys that overrides set, with their values as text. A deletion (~KEY) sets nothing."""
    pairs = (item.lstrip("+").partition("=") for item in overrides if not item.startswith("~"))
    return {key.partition("@")[0]: value for key, _, value in pairs}


def values(overrides: Iterable[str], key: str) -> list[str]:
    """Returns the values that the last override of `key` gives, as text: several for a sweep or a list.

    An override that Hydra cannot read does not count. The result is empty if no other override sets `key`.
    """
    found: list[str] = []
    for item in overrides:
        try:
            override = OverridesParser.create().parse_override(item)
        except HydraException:
            continue
        if override.key_or_group == key and not override.is_delete():
            swept = override.is_sweep_override()
            given = list(override.sweep_iterator()) if swept else [override.value()]
            found = [str(value) for one in given for value in (one if isinstance(one, list) else [one]) if value is not None]
    return found


def override(key: str, values: Iterable[str]) -> str:
    """Returns the override that sets `key` to a list of texts. The texts may have any characters."""
    return f"{key}=[{','.join(map(_quoted, values))}]"


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w./-]+", value) else QuotedString(value, Quote.single).with_quotes()


def flags(hydra: Any) -> list[str]:
    """Returns the arguments of the running command that say where its configuration lies: --config-dir, --config-name and
    hydra.searchpath.

    Args:
        hydra: the section `hydra` of the composed configuration. A job of a sweep has this section too, in every process.
    """
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.provider == "command-line"]
    here = Path(hydra.runtime.cwd)
    shown = [str(folder.relative_to(here) if folder.is_relative_to(here) else folder) for folder in folders]
    named = [] if hydra.job.config_name in (None, "config") else ["--config-name", hydra.job.config_name]
    searched = [item for item in hydra.overrides.hydra if item.partition("=")[0] == "hydra.searchpath"]
    return [*(word for folder in shown for word in ("--config-dir", folder)), *named, *searched]


def config_dir(arguments: Sequence[str]) -> str | None:
    """Returns the folder that --config-dir names in `arguments`, a command line for Hydra; None without this flag."""
    return get_args_parser().parse_args(list(arguments)).config_dir


def overrides(arguments: Sequence[str], groups: Path) -> list[str]:
    """Returns the overrides of a command line.

    Args:
        arguments: the command line as Hydra takes it, without the command.
        groups: the folder `conf/` of this package.

    Raises:
        UserError: the flags name a configuration that would replace this package's configuration, or that Hydra would not read.
    """
    flags = get_args_parser().parse_args(list(arguments))
    if flags.config_path:
        raise UserError(
            f"--config-path {flags.config_path}: it would replace all settings\n"
            f"allowed: config={flags.config_path} for the configuration of a run, --config-dir FOLDER for your own choices"
        )
    folder, name = flags.config_dir and Path(flags.config_dir), (flags.config_name or "config").removesuffix(".yaml")
    there = folder is not None and (folder / f"{name}.yaml").is_file()
    if there and (groups / f"{name}.yaml").is_file():
        raise UserError(
            f"--config-dir {folder}: its {name}.yaml would not be read, because bnn-train has a file of that name\n"
            f"allowed: config={folder}/{name}.yaml for the configuration of a run, or a folder without {name}.yaml"
        )
    if name != "config" and not there:
        where = f"--config-dir {folder}" if folder else "any --config-dir"
        raise UserError(
            f"--config-name {flags.config_name}: no {name}.yaml in {where}\n"
            "allowed: config=RUN for the configuration of a run, experiment=NAME for your own experiment in --config-dir"
        )
    return flags.overrides
