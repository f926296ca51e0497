"""Makes consoles that show users' texts literally, and progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from bnn_exp.records.formatting import printable

EVERY = 10.0  # seconds between two lines of progress, if the output is no terminal
PATIENCE = 1.0  # seconds before a progress bar appears


class Plain(Console):
    """A console for users' texts, which ignores markup and emoji codes, and escapes characters that its stream can't show.

    All text passes `render_str`: printed text, titles, and table cells.
    """

    def __init__(self, **settings: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text, self.encoding), **settings)


def console() -> Console:
    """Returns the console of the command: as wide as the terminal, else 120 columns."""
    made = Plain(soft_wrap=True)
    if not made.is_terminal:
        made.width = 120
    return made


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Context manager: while the body runs, shows how many of `total` items are done, under the label `what`.

    A terminal gets a bar after a second; other outputs get a line every ten seconds.

    Yields:
        A function that the body calls with the number of newly done items.
    """
    began = printed = monotonic()
    done, bar, output = 0, None, console()

    def advance(count: int) -> None:
        nonlocal printed, done, bar
        done += count
        if output.is_terminal:
            if bar is None and monotonic() - began >= PATIENCE:
                bar = started_bar(output, what, total)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)
        elif monotonic() - printed >= EVERY:
            printed = monotonic()
            output.print(f"{what}: {done:,} of {total:,}")

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def started_bar(on: Console, what: str, total: int) -> Progress:
    """Returns a progress bar with the label `what`, visible on the console `on` until the caller calls `stop`."""
    columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=on, transient=True)
    bar.add_task(what, total=total)
    bar.start()
    return bar
