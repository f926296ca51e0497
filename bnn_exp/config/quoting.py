"""Puts quotes around names and paths of a command line, so that Hydra reads them as they are typed. Imports no torch.

Without quotes Hydra reads `from=007` as the number 7 and `dataset.path=~/x` as a folder called ~, and it refuses
`dataset.path=a=b`. Only values of keys that hold text get quotes. Hydra's lists, sweeps, quotes, interpolations and null keep
their meaning.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from bnn_exp.config.paths import at_home, is_there

OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name", "hydra.searchpath")
PLAIN = re.compile(r"(?!(?:true|false|nan|inf)$)(?:\.{0,2}/)?[a-z_][\w./-]*", re.IGNORECASE | re.ASCII)
PART = re.compile(r"""(?P<quoted>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<function>\w+\s*\()|(?P<name>[^][(),"']+)""")


def as_typed(overrides: Sequence[str], groups: Path, sweep: bool) -> list[str]:
    """Returns the overrides with quotes, so that Hydra reads each name and path as it is typed, with ~ expanded.

    Args:
        groups: the folder `conf/` of this package. Its subfolders are groups, whose choices are names too.
        sweep: True if commas separate the values of a sweep.
    """
    if all(PLAIN.fullmatch(item.partition("=")[2]) for item in overrides):
        return list(overrides)
    keys = keys_of_text(groups)
    return [_as_typed(item, keys, sweep) for item in overrides]


def keys_of_text(groups: Path) -> set[str]:
    """Returns the keys whose values are free text: settings, the groups in the folder `groups`, and keys of Hydra."""
    from bnn_exp.config.settings import known_keys

    known, chosen = known_keys(), {folder.name for folder in groups.iterdir() if folder.is_dir()}
    return {key.name for key in known if key.text} | chosen | {*OF_HYDRA}


def _as_typed(override: str, keys: Collection[str], sweep: bool) -> str:
    key, equals, value = override.partition("=")
    if not value or key.startswith("~") or key.lstrip("+").partition("@")[0] not in keys:
        return override
    return key + equals + _value(value, sweep)


def _value(value: str, sweep: bool) -> str:
    """Returns the value of an override with the quotes that Hydra needs. With `sweep`, a comma separates values.

    A value that is the path of an existing file is one path, whatever its characters are.
    """
    if is_there(value) and not (sweep and "," in value):
        return _quoted(at_home(value).replace("${", r"\${")) if "${" in value else _name(value)
    taken = PART.sub(_part, value)
    for text in (taken, value):  # `value` itself is for functions of numbers, such as range(1,3)
        if _read(text) is not None:
            return text
    return ",".join(map(_name, value.split(","))) if sweep else _name(value)


def _part(found: re.Match) -> str:
    """Returns a part of a value with the quotes that Hydra needs. `found` matches PART: a name, quoted text or function."""
    if found["function"]:
        return found[0]
    if found["name"]:
        return _name(found[0])
    text = _read(found[0])
    return _quoted(at_home(text)) if isinstance(text, str) and text.startswith("~") else found[0]


def _name(text: str) -> str:
    """Returns a single name, in quotes if Hydra would read it wrongly without quotes."""
    name, read = at_home(text.strip()), _read(text)
    if "${" in name or name.lower() in ("", "null"):
        return text
    # The text stays as typed, since Hydra reads its escapes.
    if isinstance(read, str) and (read == name or not text.strip().startswith("~")):
        return text
    return name if _read(name) == name else _quoted(name)


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _read(value: str) -> Any:
    """Returns the value that Hydra reads from a text; None if this value is null, or if Hydra refuses the text."""
    try:
        return OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return None
