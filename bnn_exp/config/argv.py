"""Turns the command line, as people type it, into the arguments that Hydra takes. It refuses a word that is neither a setting
nor a flag, and says what the word may mean. Imports no torch."""

import argparse
import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from bnn_exp.config import command_line, mistakes, quoting
from bnn_exp.config.paths import at_home, is_there
from bnn_exp.errors import UserError

DASHES = "-–—−"  # web pages and word processors put the last three in the place of the first
FORM = "allowed: KEY=VALUE, such as delta=0.1; `bnn-train --help` lists every setting"
HOME = re.compile(r"^(--?[\w-]+=)?(~.*)")  # a path that begins with ~, perhaps after its flag


def arguments(given: Sequence[str], groups: Path) -> list[str]:
    """Returns the arguments that Hydra takes: all overrides in their order, then all flags.

    Args:
        given: the command line without the command, overrides and flags in any order. Names and paths stand as they are typed
            (see `bnn_exp.config.quoting`).
        groups: the folder `conf/` of this package.

    Raises:
        UserError: a flag is unknown, or a word is not KEY=VALUE.
    """
    found, flags = flags_of(given), list(given)
    for override in reversed(found.overrides):
        last = len(flags) - 1 - flags[::-1].index(override)
        del flags[last]
    if found.shell_completion:
        return [*found.overrides, *flags]
    for i in range(len(found.overrides)):
        _check_form(found.overrides, i, groups)
    sweep = found.multirun or "hydra.mode=MULTIRUN" in found.overrides
    flags = [HOME.sub(lambda path: (path[1] or "") + at_home(path[2]), flag) for flag in flags]
    return [*quoting.as_typed(found.overrides, groups, sweep), *flags]


def flags_of(given: Sequence[str]) -> argparse.Namespace:
    """Returns the values of Hydra's flags on a command line, and the words that are not flags as `overrides`.

    Raises:
        UserError: a flag is unknown, or does not take its value.
    """

    def refuse(message: str) -> NoReturn:
        words = [word for word in given if re.match(r"-+\w[\w.]+=", word) and not word.startswith("--config")]
        if words:
            raise _unknown(words[0], given)
        raise UserError(f"{message}\nallowed: the flags that `bnn-train --hydra-help` lists")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    found, unknown = parser.parse_known_intermixed_args(list(given))
    if unknown:
        raise _unknown(unknown[0], given)
    return found


def _undashed(word: str) -> str:
    """Returns the line `allowed: …` for a setting with dashes: the commands that set it without dashes."""
    from bnn_exp.config.settings import known_keys

    key, _, value = word.partition("=")
    known = known_keys()
    groups = {one.name.partition(".")[0] for one in known}
    keys = [key] if key in {one.name for one in known} | groups else mistakes.meant(key, known) or [key]
    commands = [f"bnn-train {shlex.quote(f'{one}={value}')}" for one in keys]
    return f"allowed: settings have no dashes: {mistakes.in_a_row(commands)}"


def _unknown(flag: str, given: Sequence[str]) -> UserError:
    """Returns the error for a word with dashes that is not a flag of Hydra."""
    flag = next(item for item in given if item.endswith(flag.lstrip(DASHES)))  # argparse may turn -model=mlp into -odel=mlp
    word, after = flag.lstrip(DASHES), [*given, ""][list(given).index(flag) + 1]
    if "=" in word:
        hint = _undashed(word)
    elif close := difflib.get_close_matches(flag, _options(), 1, 0.7):
        hint = f"did you mean {close[0]}?"
    elif word and after and after[0] not in DASHES and "=" not in after:
        hint = _undashed(f"{word}={after}")
    else:
        hint = "allowed: KEY=VALUE, without dashes, and the flags that `bnn-train --hydra-help` lists"
    return UserError(f"{flag}: no such flag\n{hint}")


def _options() -> list[str]:
    return re.findall(r"--[a-z][\w-]+", get_args_parser().format_usage())


def _check_form(words: Sequence[str], i: int, groups: Path) -> None:
    """Raises UserError if word `i` of the overrides is not KEY=VALUE. The message says what the word may mean."""
    word = words[i]
    if word.startswith("~"):
        _check_removal(word[1:].partition("=")[0])
    dashed = word.startswith(tuple(DASHES))
    if re.match(r"~|[^=]+=", word) and not dashed:
        return
    before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
    if dashed:
        bare = word.lstrip(DASHES) or after
        hint = f"did you mean {'-' if len(bare) == 1 else '--'}{bare}?" if bare.isalpha() else FORM
    elif meant := _meant(word, before, after, words[i + 2 :], groups):
        hint = f"did you mean {shlex.quote(meant)}?"
    elif is_there(word) and (ways := _ways_with(word, words)):
        hint = f"did you mean {mistakes.in_a_row(ways)}?"
    else:
        hint = FORM
    raise UserError(f"{word or repr(word)}: not KEY=VALUE\n{hint}")


def _ways_with(word: str, words: Sequence[str]) -> list[str]:
    """Returns overrides that may be meant by the path `word` beside the other words, quoted for a shell."""
    task, path = command_line.keys(words).get("task", "train"), Path(at_home(word))
    if task != "train":
        return [shlex.quote(f"{'input' if task == 'predict' and 'from' in command_line.keys(words) else 'from'}={word}")]
    if path.suffix == ".py":
        return [shlex.quote(f"plugins=[{word}]")]
    if path.suffix == ".yaml" and path.parent.name == "experiment":
        return [shlex.join(["--config-dir", str(path.parent.parent), f"experiment={path.stem}"])]
    if any((path / file).is_file() for file in ("multirun.yaml", "sweep.csv")):
        return [shlex.quote(f"sweep.resume={word}"), f"task=report {shlex.quote(f'from={word}')}"]
    if path.suffix in (".yaml", ".safetensors", ".pt") or (path / "config.yaml").is_file():
        keys = ["task=evaluate from", "resume", "init_from", "config"] if path.is_dir() else ["config"]
        return [f"{key}={shlex.quote(word)}" for key in keys]
    return [f"dataset=local dataset.path={shlex.quote(word)}"] if path.is_dir() else []


def _check_removal(key: str) -> None:
    """Raises UserError if `~KEY` removes a setting. Hydra can remove only choices of groups and added keys."""
    from bnn_exp.config.settings import known_keys

    if key in {known.name for known in known_keys()}:
        raise UserError(f"~{key}: no setting can be left out\nallowed: {key}=VALUE; {key}=null where a setting takes null")


def _meant(word: str, before: str, after: str, rest: Sequence[str], groups: Path) -> str | None:
    """Returns the override that `word` may be a part of; None if there is no guess.

    Args:
        before: the word before it; "" at the beginning.
        after: the word after it; "" at the end.
        rest: the words behind `after`.
    """
    from bnn_exp.config.settings import known_keys

    known, texts = {key.name: key for key in known_keys()}, quoting.keys_of_text(groups)
    key, colon, value = word.partition(":")
    if after == "=":
        return f"{word}={''.join(rest[:1])}"
    if after.startswith("="):
        return word + after
    if before.endswith("="):
        return before + word
    if key in known.keys() | texts and (colon or (after and "=" not in after)):
        return f"{key}={value if colon else after}"
    if word in known["task"].allowed.split(", "):
        return f"task={word}"
    if re.fullmatch(r"[\w-]{1,99}", word) and (chosen := sorted(groups.glob(f"*/{word}.yaml"))):
        return f"{chosen[0].parent.name}={word}"
    key, _, value = before.partition("=")
    if key in texts and (is_there(f"{value} {word}") or not is_there(word)):
        return f"{before} {word}"
    return next((option for option in _options() if option == f"--{word}"), None)
