"""Pictures, pages, loggers, output: they only show a training, so it goes on without what fails."""

from collections.abc import Callable
from typing import Any

from bnn_exp.records.log import log


def attempt(what: str, function: Callable, *arguments: Any, warn: Callable[[str], None] = log.warning) -> bool:
    """Calls `function`; where it fails, a warning (in the log, or by `warn`) says that `what` is left out. Returns whether it
    went well."""
    try:
        function(*arguments)
    except Exception as error:
        warn(f"{what} is left out, since it failed: {str(error) or type(error).__name__}")
        log.info("where it failed", exc_info=True)
        return False
    return True
