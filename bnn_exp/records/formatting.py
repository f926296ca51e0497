"""Formats texts and numbers for terminals, HTML pages and figures."""

import re
from collections.abc import Sequence
from typing import Any

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters but tab and new line
DRAWN = 48  # largest number of letters of a name in a figure


def printable(text: str, encoding: str = "utf-8") -> str:
    """Returns `text` with escapes in place of control characters and of characters that `encoding` lacks, such as lone
    surrogates."""
    text = CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def in_a_line(text: str) -> str:
    """Returns `text` as one printable line."""
    return " ".join(printable(text).split())


def drawn(text: str) -> str:
    """Returns `text` for a matplotlib figure, shortened to about DRAWN letters.

    Changes $ and a leading _: matplotlib reads $…$ as mathematics, and leaves names that begin with _ out of legends.
    """
    text = printable(text)
    text = text if len(text) <= DRAWN else f"{text[: DRAWN // 2]}…{text[-DRAWN // 2 :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def best_in_words(summary: dict[str, Any]) -> str:
    """Returns a text about the best epoch of a run, from its summary. The text says which rows chose the epoch."""
    test, epoch = summary["best_test_accuracy"], summary["best_epoch"]
    if "best_validation_accuracy" in summary:
        best = summary["best_validation_accuracy"]
        return f"best {best:.2f}% in validation (epoch {epoch}; test there {test:.2f}%)"
    return f"best {test:.2f}% (epoch {epoch}; chosen on the test rows: optimistic)"


def taken_for(label: int, answers: list[int], classes: Sequence[str]) -> str:
    """Returns the class that rows of class `label` are most often mistaken for, and the count; "—" if there are no mistakes.

    Args:
        label: the index of the class.
        answers: the number of answers per class, for rows of class `label`.
        classes: the class names.
    """
    most, other = max(((count, other) for other, count in enumerate(answers) if other != label), default=(0, 0))
    return f"{classes[other]} ({most}×)" if most else "—"


def bytes_in_words(count: float) -> str:
    """Returns a number of bytes as text, such as 4 B, 12.3 kB or 1.2 MB, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
    return f"{count:.3g} GB"
