"""How the command speaks: consoles that show every text as it is, bars, and numbers of a run in words."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and new line
EVERY = 10.0  # seconds between two lines of progress, where there is no terminal


class Plain(Console):
    """A console for the texts of users: it reads no markup and no emoji codes, and escapes what its stream can't show.

    Every text passes `render_str`: printed ones, titles, and the cells of tables.
    """

    def __init__(self, **settings):
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings) -> Text:
        return super().render_str(printable(text, self.encoding), **settings)


def printable(text: str, encoding: str = "utf-8") -> str:
    """`text` with escapes in place of control characters and of what `encoding` does not have, such as lone surrogates."""
    text = CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def console() -> Console:
    """Where the command speaks: as wide as the terminal, else 120 columns."""
    made = Plain(soft_wrap=True)
    if not made.is_terminal:
        made.width = 120
    return made


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of `total` is done: a bar on a terminal, elsewhere a line every ten seconds.

    Yields a function that takes how much more is done.
    """
    said, done, speak = monotonic(), 0, console()
    columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=speak, transient=True, disable=not speak.is_terminal)
    task = bar.add_task(what, total=total)

    def advance(count: int) -> None:
        nonlocal said, done
        done += count
        bar.update(task, advance=count)
        if not speak.is_terminal and monotonic() - said >= EVERY:
            said = monotonic()
            speak.print(f"{what}: {done:,} of {total:,}")

    with bar:
        yield advance


def best_in_words(summary: dict[str, Any]) -> str:
    """The best epoch of a run, and by which rows it was chosen, from its summary."""
    test, epoch = summary["best_test_accuracy"], summary["best_epoch"]
    if "best_validation_accuracy" in summary:
        best = summary["best_validation_accuracy"]
        return f"best {best:.2f}% in validation (epoch {epoch}; test there {test:.2f}%)"
    return f"best {test:.2f}% (epoch {epoch}; chosen on the test itself: optimistic)"


def taken_for(label: int, answers: list[int], classes: Sequence[str]) -> str:
    """The class that rows of class `label` are most often taken for, and how often, by the count of each answer."""
    most, other = max(((count, other) for other, count in enumerate(answers) if other != label), default=(0, 0))
    return f"{classes[other]} ({most}×)" if most else "—"


def bytes_in_words(count: int) -> str:
    """4 B, 12.3 kB, 1.2 MB (powers of 1000)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
    return f"{count:.3g} GB"
