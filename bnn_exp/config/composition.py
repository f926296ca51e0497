"""Makes Hydra compose the configuration of a command once. Imports no torch.

Hydra composes a configuration twice: first for the value of `hydra.mode` alone, then for the command. The first composition
takes as long as the second one. Only the command line can set `hydra.mode`, unless the user adds folders of configurations.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from hydra._internal.hydra import Hydra
from hydra.types import RunMode

from bnn_exp.config import command_line
from bnn_exp.config.argv import flags_of


@contextmanager
def composing_once(arguments: Sequence[str]) -> Iterator[None]:
    """Context manager: Hydra reads `hydra.mode` from the command line while the body runs, if nothing else can set this key.

    Args:
        arguments: the command line as Hydra takes it, without the command.
    """
    flags = flags_of(arguments)
    given = command_line.keys(flags.overrides)
    mode = given.get("hydra.mode")
    others = flags.config_dir or flags.config_name or "hydra.searchpath" in given
    if others or mode not in (None, *RunMode.__members__) or not hasattr(Hydra, "get_mode"):
        yield
        return
    with patch.object(Hydra, "get_mode", lambda *_, **__: mode and RunMode[mode]):
        yield
