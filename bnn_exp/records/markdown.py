"""Writes users' texts as GitHub's Markdown, in which all characters appear literally."""

import re
from collections.abc import Sequence

# All characters that Markdown could interpret. An underscore inside a word, as in a_b, needs no backslash.
MARKS = re.compile(r"[\\`*<|~$]|\[|\](?=[(\[:])|&(?=\w)|(?<![^\W_])_|_(?![^\W_])|(?<=:)//")


def text(value: str) -> str:
    """Returns `value` in one line, with a backslash before each character that Markdown would interpret."""
    return MARKS.sub(lambda found: f"\\{found[0]}", " ".join(value.split()))


def code(value: str) -> str:
    """Returns `value` in one line of Markdown, as code between backticks."""
    value = " ".join(value.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", value)), default=0) + 1)
    pad = " " if value[:1] == "`" or value[-1:] == "`" else ""
    return f"{fence}{pad}{value}{pad}{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool]) -> str:
    """Returns a Markdown table of texts with the column titles `head`. `bold` is True for the rows in bold letters."""
    lines = ["| " + " | ".join(map(text, head)) + " |", "|---" * len(head) + "|"]
    for cells, strong in zip(rows, bold, strict=True):
        shown = [f"**{text(cell)}**" if strong and cell else text(cell) for cell in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)
