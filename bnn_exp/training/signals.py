"""Handles the signals that ask a process to end: Ctrl-C, `kill`, a closed terminal, and the warnings of job queues.

A training ends between two steps, with everything saved. Any other work ends at once, by KeyboardInterrupt. Ctrl-C after an
earlier signal ends a training at once too. Other signals may repeat without effect, because queues send several.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ALWAYS = [signal.SIGINT, signal.SIGTERM]
UNLESS_IGNORED = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)]
SIGNALS = {*ALWAYS, *UNLESS_IGNORED}  # an ignored SIGHUP, as under nohup, stays ignored


class Stop:
    """A record of the first signal that asked the process to end. Calling the object returns True from then on."""

    number = 0  # the number of the first signal; 0 before any signal
    waiting = False  # True while a training waits for its step to end: a signal is then only recorded

    def __call__(self) -> bool:
        return self.number != 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        again = self()
        self.number = self.number or number
        if (again and number == signal.SIGINT) or not (again or self.waiting):
            raise KeyboardInterrupt


outermost: Stop | None = None  # belongs to the outermost active `listening()` block of this process


@contextmanager
def listening() -> Iterator[Stop]:
    """Context manager: the first signal is recorded and raises KeyboardInterrupt, as a later Ctrl-C does. Blocks may be nested.

    If a library had its own handler for the signal, the handler gets the signal after the block. (submitit's handler requeues
    a job.) Outside the main thread no handler can be set, so signals have no effect here.
    """
    global outermost
    if outermost is not None or threading.current_thread() is not threading.main_thread():
        yield outermost or Stop()
        return
    stop = outermost = Stop()
    chosen = [*ALWAYS, *(number for number in UNLESS_IGNORED if signal.getsignal(number) != signal.SIG_IGN)]
    before = {number: signal.signal(number, stop.handle) for number in chosen}
    try:
        yield stop
    finally:
        outermost = None
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if _of_a_library(before.get(stop.number)):
            signal.raise_signal(stop.number)


def _of_a_library(handler: Callable | int | None) -> bool:
    return callable(handler) and handler is not signal.default_int_handler


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Context manager: the first signal is only recorded. The code in the block calls the Stop, and ends where it can."""
    with listening() as stop:
        before, stop.waiting = stop.waiting, True
        try:
            yield stop
        finally:
            stop.waiting = before


def asked() -> bool:
    """Returns True if a signal has asked this process to end."""
    return outermost is not None and outermost()
