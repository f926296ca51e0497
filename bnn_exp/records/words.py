"""Numbers of a run in words, the same on a terminal and on a page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> "Console":
    """Where the command speaks: as wide as the terminal, else 120 columns."""
    from rich.console import Console

    made = Console(highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = 120
    return made


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
