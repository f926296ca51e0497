"""Refuses a word of the command line that is neither an override nor a flag, and guesses what the user means by the word.

Imports no torch.
"""

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser

from bnn_exp.config import command_line, mistakes, quoting
from bnn_exp.config.paths import at_home, is_there
from bnn_exp.errors import UserError

DASHES = "-–—−"  # web pages and word processors put the last three in the place of the first
FORM = "allowed: KEY=VALUE, such as delta=0.1; `bnn-train --help` lists every setting"


def unknown_flag(flag: str, given: Sequence[str]) -> UserError:
    """Returns the exception for `flag`, a word with dashes on the command line `given` that is not a flag of Hydra."""
    # Finds the word as it was given: argparse may turn -model=mlp into -odel=mlp.
    flag = next(item for item in given if item.endswith(flag.lstrip(DASHES)))
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


def check_form(words: Sequence[str], i: int, groups: Path) -> None:
    """Raises UserError if `words[i]` is not KEY=VALUE. The message says what the word may mean.

    Args:
        words: the words of the command line that are not flags.
        groups: the folder `conf/` of this package.
    """
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


def _undashed(word: str) -> str:
    """Returns the line `allowed: …` for KEY=VALUE that was typed with dashes: the same setting without dashes."""
    from bnn_exp.config.settings import known_keys

    key, _, value = word.partition("=")
    known = known_keys()
    groups = {one.name.partition(".")[0] for one in known}
    keys = [key] if key in {one.name for one in known} | groups else mistakes.meant(key, known) or [key]
    commands = [f"bnn-train {shlex.quote(f'{one}={value}')}" for one in keys]
    return f"allowed: settings have no dashes: {mistakes.in_a_row(commands)}"


def _ways_with(word: str, words: Sequence[str]) -> list[str]:
    """Returns the overrides, quoted for a shell, that a user may mean by the path `word` on the command line `words`."""
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
    """Raises UserError if ~KEY removes the setting `key`. Hydra can remove only choices of groups and added keys."""
    from bnn_exp.config.settings import known_keys

    if key in {known.name for known in known_keys()}:
        raise UserError(f"~{key}: no setting can be left out\nallowed: {key}=VALUE; {key}=null where a setting takes null")


def _meant(word: str, before: str, after: str, rest: Sequence[str], groups: Path) -> str | None:
    """Returns the override that `word` may be a part of; None if there is no guess.

    Args:
        before: the word before `word` on the command line; "" at the beginning.
        after: the word after `word`; "" at the end.
        rest: the words behind `after`.
        groups: the folder `conf/` of this package.
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


def _options() -> list[str]:
    return re.findall(r"--[a-z][\w-]+", get_args_parser().format_usage())
