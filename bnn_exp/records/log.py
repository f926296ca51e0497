"""Writes `train.log`, the log file in a run directory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bnn_exp.records.files import writing_to

log = logging.getLogger("bnn_exp")


class _Quiet(logging.FileHandler):
    """A log handler that skips lines that can't be written. The command reports a full disk by another message."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Context manager: while the body runs, everything that the logger `bnn_exp` logs is appended to `file`.

    Raises:
        NotWritten: the file can't be created.
    """
    with writing_to(file.parent):
        handler = _Quiet(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()
