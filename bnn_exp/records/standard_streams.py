"""Standard output and error that never end a run: closed, full, or of an encoding without the letters of a name."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from bnn_exp.records.log import log


class Forgiving:
    """A text stream that falls silent, with a warning in the log, when it can't be written any more."""

    def __init__(self, stream: TextIO, name: str):
        self.stream, self.name = stream, name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # é → \xe9 where the encoding has no é

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._silence(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._silence(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _silence(self, error: Exception) -> None:
        """Have all that is written from now on, by whomever, go nowhere; what waits in the buffer too."""
        full, self.stream = self.stream, open(os.devnull, "w")  # noqa: PTH123, SIM115
        with suppress(OSError, ValueError):  # it is no file
            os.dup2(self.stream.fileno(), full.fileno())
        mishap = isinstance(error, OSError) and not isinstance(error, BrokenPipeError)  # as `| head` or a closed stream is not
        level = logging.WARNING if mishap else logging.INFO
        log.log(level, "%s can't be written any more: %s", self.name, error)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Within the block output that can't be written is dropped."""
    if isinstance(sys.stdout, Forgiving):
        yield
        return
    _open_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Forgiving(sys.stdout, "standard output"), Forgiving(sys.stderr, "standard error")
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Give closed standard files (`>&-`) the null device; else the next file to be opened, a checkpoint, takes their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
