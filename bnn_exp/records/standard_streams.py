"""Makes standard output and standard error harmless: a closed pipe, a full disk or a poor encoding never ends a run."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from bnn_exp.records.log import log


class Forgiving:
    """A text stream that drops all text, with one entry in the log, after a failed write."""

    def __init__(self, stream: TextIO, name: str):
        self.stream, self.name = stream, name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # é → \xe9 where the encoding has no é

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
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
        """Sends all further output to the null device, also buffered output and output that others write to this stream."""
        full, self.stream = self.stream, open(os.devnull, "w")  # noqa: PTH123, SIM115
        with suppress(OSError, ValueError):  # the stream may have no file descriptor
            os.dup2(self.stream.fileno(), full.fileno())
        # A pipe that `| head` has closed and a closed stream need no warning.
        mishap = isinstance(error, OSError) and not isinstance(error, BrokenPipeError)
        level = logging.WARNING if mishap else logging.INFO
        log.log(level, "%s can't be written any more: %s", self.name, error)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Context manager: while the body runs, standard output and standard error drop text that can't be written."""
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
    """Opens the null device in place of closed standard streams (`>&-`). Otherwise the next file to be opened, such as a
    checkpoint, would get the file descriptor of a standard stream."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the new descriptor takes the lowest free number, which is `number`
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
