"""Consoles that show every text as it is, and bars of what takes long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from bnn_exp.records.words import console, printable

EVERY = 10.0  # seconds between two lines of progress, where there is no terminal


class Plain(Console):
    """A console for the texts of users: it reads no markup and no emoji codes, and escapes what its stream can't show.

    Every text passes `render_str`: printed ones, titles, and the cells of tables.
    """

    def __init__(self, **settings):
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings) -> Text:
        return super().render_str(printable(text, self.encoding), **settings)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of `total` is done: a bar on a terminal, elsewhere a line every ten seconds.

    Yields a function that takes how much more is done.
    """
    said, done, speak = monotonic(), 0, console()
    columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=speak, transient=True)
    task = bar.add_task(what, total=total)

    def advance(count: int) -> None:
        nonlocal said, done
        done += count
        bar.update(task, advance=count)
        if not speak.is_terminal and monotonic() - said >= EVERY:
            said = monotonic()
            speak.print(f"{what}: {done:,} of {total:,}")

    with bar if speak.is_terminal else nullcontext():
        yield advance
