"""Texts of users in Markdown (GitHub's): they are shown as they are, and mark nothing up."""

import re
from collections.abc import Sequence

MARKS = re.compile(r"[\\`*<|~$]|\[|\](?=[(\[:])|&(?=\w)|(?<![^\W_])_|_(?![^\W_])|(?<=:)//")  # a_b is no emphasis


def text(value: str) -> str:
    """`value` in a line, with a backslash before whatever would be read as markup."""
    return MARKS.sub(lambda found: f"\\{found[0]}", " ".join(value.split()))


def code(value: str) -> str:
    """`value` as code, in a line."""
    value = " ".join(value.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", value)), default=0) + 1)
    pad = " " if value[:1] == "`" or value[-1:] == "`" else ""
    return f"{fence}{pad}{value}{pad}{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool]) -> str:
    """A table of texts; `bold` tells the rows that are to stand out."""
    lines = ["| " + " | ".join(map(text, head)) + " |", "|---" * len(head) + "|"]
    for cells, strong in zip(rows, bold, strict=True):
        shown = [f"**{text(cell)}**" if strong and cell else text(cell) for cell in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)
