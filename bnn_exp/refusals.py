"""Says in a line or two what Hydra refuses, with what may be typed in its place. Imports no torch."""

import difflib
import re
import shlex
from collections.abc import Sequence

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import OverrideParseException

EXTRAS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}  # of pyproject.toml, by launcher


def in_words(error: Exception, arguments: Sequence[str]) -> str:
    """Returns one to three lines for an error of Hydra's.

    Args:
        arguments: the command line, without the command.
    """
    cause, text = error, str(error)
    while not text and cause.__cause__:
        cause = cause.__cause__
        text = str(cause)
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark:
        where = cause.problem_mark
        return f"{where.name}, line {where.line + 1}: {cause.problem}\nallowed: YAML, indented by spaces"
    if isinstance(error, OverrideParseException):
        return _unread(error.override)
    for pattern, said in _REFUSED:
        if match := re.search(pattern, text, re.MULTILINE):
            return said(match, text, arguments)
    return "\n".join(line.strip() for line in text.splitlines()[:2])


def no_such_choice(group: str, choice: str, choices: Sequence[str]) -> str:
    """Returns two lines: the nearest choice of a group, and all of them."""
    nearest = difflib.get_close_matches(choice.lower(), choices, 1)
    hint = f"; did you mean {group}={nearest[0]}?" if nearest else ""
    own = ", or one of your own: plugins=[FILE.py]" if group in ("model", "optimizer", "dataset") else ""
    return f"{group}={choice}: no such choice{hint}\nallowed: {', '.join(choices)}{own}"


def _unread(override: str) -> str:
    key, _, value = override.partition("=")
    quoted = shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")
    return f"{override}: can't be read as KEY=VALUE\nallowed: a value in quotes, where it is one text: {quoted}"


def _key(match: re.Match, text: str, arguments: Sequence[str]) -> str:
    from bnn_exp import config, explain

    key = match[2].partition("=")[0]
    return explain.unknown_key(key, config.keys())


def _choice(match: re.Match, text: str, arguments: Sequence[str]) -> str:
    group, choice = match[1], match[2]
    if group == "hydra/launcher" and choice in EXTRAS:
        return f"hydra/launcher={choice}: not installed\npip install 'bnn-exp[{EXTRAS[choice]}]'"
    return no_such_choice(group, choice, re.findall(r"^\t(\S+)$", text, re.MULTILINE))


def _several(match: re.Match, text: str, arguments: Sequence[str]) -> str:
    from bnn_exp import config, names

    key, _, values = match[1].partition("=")
    known = [one for one in config.keys() if one.name == key]  # noqa: SIM118
    forms = [] if key.startswith("hydra.") else [shlex.join(["bnn-train", "-m", *arguments])]
    if "(" not in values and any("a list" in one.allowed for one in known):
        forms.append(f"{shlex.quote(f'{key}=[{values}]')} for a list")
    if "(" not in values and (key in names.OF_HYDRA or any(one.text for one in known)):
        forms.append(f"""{shlex.quote(f'{key}="{values}"')} for one name""")
    return f"{match[1]}: several values, and no sweep\nallowed: {'; '.join(forms)}"


def _twice(match: re.Match, text: str, arguments: Sequence[str]) -> str:
    group = match[1].partition("@")[0]
    return f"{group}: a file chooses it a second time\nallowed: `- override /{group}: NAME` in its `defaults:`"


_REFUSED = (
    (r"Could not (override|delete from config|append to config|delete).*?'([^']+)'", _key),
    (r"Could not find '([^']+)/([^'/]+)'", _choice),
    (r"Ambiguous value for argument '(.+)'$", _several),
    (r"Sweep parameters '(.+)' requires --multirun", _several),
    (r"^(\S+) appears more than once in the final defaults list", _twice),
)
