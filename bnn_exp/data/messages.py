"""Parts of messages to the user: names of files and rows, lists of names, reasons of errors."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

WHOLE = "allowed: a whole file that you may read; perhaps copy or download it again"


def shown(path: Path | str) -> str:
    """Returns a file name as valid text with composed accents (NFC). A name that is not UTF-8 is read as Latin-1."""
    raw = str(path)
    try:
        raw.encode()
    except UnicodeEncodeError:
        raw = raw.encode("utf-8", "surrogateescape").decode("latin-1")
    return unicodedata.normalize("NFC", raw)


def named(paths: Sequence[Path]) -> Callable[[int], str]:
    """Returns a function that returns the words for a row number in messages: the number and the file of the row."""
    return lambda i: f"image {i} ({shown(paths[i])})"


def some(names: Sequence[str], most: int = 3) -> str:
    """Returns the first `most` names and the number of further names, such as "a, b, c and 5 more"."""
    first = ", ".join(name if len(name) <= 60 else name[:59] + "…" for name in names[:most])
    return first + (f" and {len(names) - most} more" if len(names) > most else "")


def short_reason(error: Exception) -> str:
    """Returns the message of an exception, such as another library's, as one line of at most 200 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:200]
