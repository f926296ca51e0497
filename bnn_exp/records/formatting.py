"""Texts and numbers of a run in words, the same on a terminal and on a page."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and new line
DRAWN = 48  # letters of a name in a figure


def printable(text: str, encoding: str = "utf-8") -> str:
    """`text` with escapes in place of control characters and of what `encoding` does not have, such as lone surrogates."""
    text = CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def in_a_line(text: str) -> str:
    """`text` as one printable line."""
    return " ".join(printable(text).split())


def drawn(text: str) -> str:
    """`text` for a figure of matplotlib, which takes $…$ for mathematics and leaves names out of legends that begin with _."""
    text = printable(text)
    text = text if len(text) <= DRAWN else f"{text[: DRAWN // 2]}…{text[-DRAWN // 2 :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def console() -> "Console":
    """Where the command speaks: as wide as the terminal, else 120 columns."""
    from bnn_exp.records.terminal import Plain

    made = Plain(soft_wrap=True)
    if not made.is_terminal:
        made.width = 120
    return made


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


def bytes_in_words(count: float) -> str:
    """4 B, 12.3 kB, 1.2 MB (powers of 1000)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
    return f"{count:.3g} GB"
