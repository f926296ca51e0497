"""Takes the names and paths of a command line as they are typed. Imports no torch.

Hydra reads `from=007` as the number 7 and `dataset.path=~/x` as a folder called ~, and it refuses `dataset.path=a=b`. Here the
value of a key that holds text gets the quotes by which Hydra reads the same text. Hydra's lists, sweeps, quotes, interpolations
and null stay what they are.
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
    """Returns the overrides such that Hydra reads each name and path as the text that it is, with ~ expanded.

    Args:
        groups: the folder of our own configuration. The choice of a group is a name too.
        sweep: whether commas separate the values of a sweep.
    """
    if all(PLAIN.fullmatch(item.partition("=")[2]) for item in overrides):
        return list(overrides)
    keys = keys_of_text(groups)
    return [_as_typed(item, keys, sweep) for item in overrides]


def keys_of_text(groups: Path) -> set[str]:
    """Returns the keys whose value is any text, those of `groups` and of Hydra among them."""
    from bnn_exp.config.settings import known_keys

    known, chosen = known_keys(), {folder.name for folder in groups.iterdir() if folder.is_dir()}
    return {key.name for key in known if key.text} | chosen | {*OF_HYDRA}


def _as_typed(override: str, keys: Collection[str], sweep: bool) -> str:
    key, equals, value = override.partition("=")
    if not value or key.startswith("~") or key.lstrip("+").partition("@")[0] not in keys:
        return override
    return key + equals + _value(value, sweep)


def _value(value: str, sweep: bool) -> str:
    """Returns the text of a value for Hydra. What exists under the whole of it is meant, whatever its characters say."""
    if is_there(value) and not (sweep and "," in value):
        return _quoted(at_home(value).replace("${", r"\${")) if "${" in value else _name(value)
    taken = PART.sub(_part, value)
    for text in (taken, value):  # the second: range(1,3), and other functions of numbers
        if _read(text) is not None:
            return text
    return ",".join(map(_name, value.split(","))) if sweep else _name(value)


def _part(found: re.Match) -> str:
    """Returns one name of a list or sweep for Hydra, or what stands between names as it is."""
    if found["function"]:
        return found[0]
    if found["name"]:
        return _name(found[0])
    text = _read(found[0])
    return _quoted(at_home(text)) if isinstance(text, str) and text.startswith("~") else found[0]


def _name(text: str) -> str:
    """Returns a single name for Hydra, in quotes if it needs them."""
    name, read = at_home(text.strip()), _read(text)
    if "${" in name or name.lower() in ("", "null"):
        return text
    if isinstance(read, str) and (read == name or not text.strip().startswith("~")):  # as it is, or with Hydra's escapes
        return text
    return name if _read(name) == name else _quoted(name)


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _read(value: str) -> Any:
    """Returns what Hydra reads a value as; None where it is null, or where Hydra refuses it."""
    try:
        return OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return None
