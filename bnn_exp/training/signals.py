"""Signals that ask a process to end: Ctrl-C, `kill`, a closed terminal, and what queues send before they kill.

A training ends between two steps, with everything saved; all else ends at once, by KeyboardInterrupt. The second Ctrl-C ends
a training at once too; other signals may come as often as they like, since queues send several.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ALWAYS = [signal.SIGINT, signal.SIGTERM]
UNLESS_IGNORED = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)]
SIGNALS = {*ALWAYS, *UNLESS_IGNORED}  # nohup has SIGHUP ignored, and then it stays so


class Stop:
    """Whether the process was asked to end; calling it tells. `number` is the first signal that did, 0 before."""

    number = 0
    waiting = False  # for a step to end: a signal is only noted

    def __call__(self) -> bool:
        return self.number != 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        again = self()
        self.number = self.number or number
        if (again and number == signal.SIGINT) or not (again or self.waiting):
            raise KeyboardInterrupt


outermost: Stop | None = None  # of the outermost block `listening()` that this process is in


@contextmanager
def listening() -> Iterator[Stop]:
    """Within the block the signals raise KeyboardInterrupt, once, and are noted; blocks may be nested.

    A handler that some library had for the signal (submitit's, which asks for the requeue of a job) gets it after the block.
    Outside of the main thread no handler can be set, and the signals are not noticed.
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
    """Within the block the signals only ask: what runs there looks at the Stop, and ends when it suits."""
    with listening() as stop:
        before, stop.waiting = stop.waiting, True
        try:
            yield stop
        finally:
            stop.waiting = before


def asked() -> bool:
    """Whether a signal has asked this process to end."""
    return outermost is not None and outermost()
