"""Pictures, pages, loggers, output: they only show a training, so it goes on without what fails."""

from collections.abc import Callable

from bnn_exp.records.log import log


def attempt(what: str, function: Callable, *arguments) -> bool:
    """Call `function`; where it fails, a warning in the log says that `what` is left out. Returns whether it went well."""
    try:
        function(*arguments)
    except Exception as error:
        log.warning("%s is left out, since it failed: %s", what, error or type(error).__name__)
        log.info("where it failed", exc_info=True)
        return False
    return True
