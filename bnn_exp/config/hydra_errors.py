"""Turns an exception of Hydra into a message of one to three lines that says what to type instead. Imports no torch."""

import difflib
import re
import shlex
from collections.abc import Sequence

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import OverrideParseException

from bnn_exp.config import mistakes
from bnn_exp.config.registry import CONF, RESERVED

BY_MODEL = "of_"  # the prefix of choices: optimizer=of_MODEL and trainer=of_MODEL are the defaults of a model
# launcher: the EXTRA with which pip install 'bnn-exp[EXTRA]' installs the launcher
EXTRAS = {"submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}


def in_words(error: Exception, arguments: Sequence[str]) -> str:
    """Returns the message, one to three lines, for an exception of Hydra.

    Args:
        arguments: the command line, without the command.
    """
    cause: BaseException = error
    text = str(error)
    while not text and cause.__cause__:
        cause = cause.__cause__
        text = str(cause)
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark:
        where = cause.problem_mark
        return f"{where.name}, line {where.line + 1}: {cause.problem}\nallowed: YAML, indented by spaces"
    if isinstance(error, OverrideParseException):
        return _unread(error.override)
    for pattern, describe in _REFUSED:
        if match := re.search(pattern, text, re.MULTILINE):
            return describe(match, text, arguments)
    return "\n".join(line.strip() for line in text.splitlines()[:2])


def no_such_choice(group: str, choice: str, choices: Sequence[str]) -> str:
    """Returns the message, two or three lines, for a choice that a group does not have.

    Args:
        choices: the choices of the group, for the hint and for the list of allowed values.
    """
    if choice.startswith(BY_MODEL) and group in ("optimizer", "trainer"):
        return _no_default(choice.removeprefix(BY_MODEL))
    shown = [one for one in choices if not one.startswith(BY_MODEL) and one not in RESERVED]
    found = [f"{group}={one}" for one in difflib.get_close_matches(choice.lower(), shown, 1) or _with_word(choice, shown)]
    others = [file.parent.name for file in sorted(CONF.glob("*/*.yaml")) if file.stem == choice]
    found += [f"{other}={choice}" for other in others if other != group]
    hint = f"; did you mean {mistakes.in_a_row(found)}?" if found else ""
    plugin = "plugins=[FILE.py], or " if group in ("model", "optimizer", "dataset") else ""
    own = f"{plugin}--config-dir FOLDER with FOLDER/{group}/{choice}.yaml"
    return f"{group}={choice}: no such choice{hint}\nallowed: {', '.join(shown)}; or your own: {own}"


def _with_word(choice: str, choices: Sequence[str]) -> list[str]:
    """Returns the choices that contain `choice` as a word, such as latent_adam for adam."""
    return [one for one in choices if choice.lower() in one.split("_")]


def _no_default(model: str) -> str:
    """Returns the message for a model in the folder of --config-dir that has no file with its default optimizer and trainer."""
    files = " and ".join(f"{group}/{BY_MODEL}{model}.yaml" for group in ("optimizer", "trainer"))
    return (
        f"model={model}: no file says which optimizer and trainer it has\n"
        "allowed: optimizer=NAME trainer=NAME beside it, such as optimizer=counter trainer=default\n"
        f"or, in the folder of model/{model}.yaml, the files {files}, each with `defaults: [NAME]`"
    )


def _unread(override: str) -> str:
    key, _, value = override.partition("=")
    quoted = shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")
    return f"{override}: can't be read as KEY=VALUE\nallowed: quotes around a value that is one text: {quoted}"


def _key(match: re.Match, text: str, arguments: Sequence[str]) -> str:
    from bnn_exp.config.settings import known_keys

    key = match[2].partition("=")[0]
    return mistakes.unknown_key(key, known_keys())


def _choice(match: re.Match, text: str, arguments: Sequence[str]) -> str:
    group, choice = match[1], match[2]
    if group == "hydra/launcher" and choice in EXTRAS:
        return f"hydra/launcher={choice}: not installed\npip install 'bnn-exp[{EXTRAS[choice]}]'"
    return no_such_choice(group, choice, re.findall(r"^\t(\S+)$", text, re.MULTILINE))


def _several(match: re.Match, text: str, arguments: Sequence[str]) -> str:
    from bnn_exp.config import quoting
    from bnn_exp.config.settings import known_keys

    key, _, values = match[1].partition("=")
    known = [one for one in known_keys() if one.name == key]
    forms = [] if key.startswith("hydra.") else [shlex.join(["bnn-train", "-m", *arguments])]
    if "(" not in values and any("a list" in one.allowed for one in known):
        forms.append(f"{shlex.quote(f'{key}=[{values}]')} for a list")
    if "(" not in values and (key in quoting.OF_HYDRA or any(one.text for one in known)):
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
