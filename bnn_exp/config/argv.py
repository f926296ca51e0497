"""Turns the command line, as people type it, into the arguments that Hydra takes. Imports no torch."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from bnn_exp.config import mistyped, quoting
from bnn_exp.config.paths import at_home
from bnn_exp.errors import UserError

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
        mistyped.check_form(found.overrides, i, groups)
    sweep = found.multirun or "hydra.mode=MULTIRUN" in found.overrides
    flags = [HOME.sub(lambda path: (path[1] or "") + at_home(path[2]), flag) for flag in flags]
    return [*quoting.as_typed(found.overrides, groups, sweep), *flags]


def flags_of(given: Sequence[str]) -> argparse.Namespace:
    """Returns the values of Hydra's flags on the command line `given`; the attribute `overrides` lists all other words.

    Raises:
        UserError: a flag is unknown, or does not take its value.
    """

    def refuse(message: str) -> NoReturn:
        words = [word for word in given if re.match(r"-+\w[\w.]+=", word) and not word.startswith("--config")]
        if words:
            raise mistyped.unknown_flag(words[0], given)
        raise UserError(f"{message}\nallowed: the flags that `bnn-train --hydra-help` lists")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    found, unknown = parser.parse_known_intermixed_args(list(given))
    if unknown:
        raise mistyped.unknown_flag(unknown[0], given)
    return found
