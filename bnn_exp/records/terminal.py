"""Consoles that show every text as it is, and bars of what takes long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from bnn_exp.records.formatting import console, printable

EVERY = 10.0  # seconds between two lines of progress, where there is no terminal
PATIENCE = 1.0  # seconds before a bar appears


class Plain(Console):
    """A console for the texts of users: it reads no markup and no emoji codes, and escapes what its stream can't show.

    Every text passes `render_str`: printed ones, titles, and the cells of tables.
    """

    def __init__(self, **settings: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text, self.encoding), **settings)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of `total` is done, where it takes long: a bar on a terminal after a second, elsewhere a line every ten.

    Yields a function that takes how much more is done.
    """
    began = said = monotonic()
    done, bar, speak = 0, None, console()

    def advance(count: int) -> None:
        nonlocal said, done, bar
        done += count
        if speak.is_terminal:
            if bar is None and monotonic() - began >= PATIENCE:
                bar = started_bar(speak, what, total)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)
        elif monotonic() - said >= EVERY:
            said = monotonic()
            speak.print(f"{what}: {done:,} of {total:,}")

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def started_bar(on: Console, what: str, total: int) -> Progress:
    """Returns a progress bar of one task, shown on the console `on` until its `stop`."""
    columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=on, transient=True)
    bar.add_task(what, total=total)
    bar.start()
    return bar
