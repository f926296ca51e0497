"""Runs optional output (plots, pages, loggers, the console). A failure of optional output never ends a training."""

from collections.abc import Callable
from typing import Any

from bnn_exp.records.log import log


def attempt(what: str, function: Callable, *arguments: Any, warn: Callable[[str], None] = log.warning) -> bool:
    """Calls `function(*arguments)` and returns True if the call succeeds. If the call fails, returns False and calls
    `warn` with a sentence: the output `what` is left out."""
    try:
        function(*arguments)
    except Exception as error:
        warn(f"{what} is left out, since it failed: {str(error) or type(error).__name__}")
        log.info("where it failed", exc_info=True)
        return False
    return True
