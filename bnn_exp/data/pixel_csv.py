"""Reads CSV files of pixels: a column of classes, and one for each pixel of a grey square picture."""

from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np

from bnn_exp.data.columns import LABELS
from bnn_exp.data.rows import Found, Rows, Source, shown, some, split_in
from bnn_exp.data.values import LEAST_PIXELS, Damaged, paired, read
from bnn_exp.errors import UserError

LONGEST_LINE = 4_000_000  # characters of a CSV file's line that are looked at


def find(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Finds the CSV file of each split. A file without classes, such as the test rows of a competition, is none."""
    places = {file: place for file in files if file.suffix.lower() in (".csv", ".tsv") and (place := _places(file, label))}
    splits: dict[str, Path] = {}
    for file in sorted(places, key=str):
        split = split_in(file.relative_to(root)) or "train"
        if split in splits:
            both = some([shown(f.relative_to(root)) for f in (splits[split], file)])
            raise UserError(f"{where}: two CSV files of {split} rows: {both}\nallowed: one a split")
        splits[split] = file

    def load(source: Source) -> dict[str, Rows]:
        return {split: paired(source, *read(source, file, places[file], csv)) for split, file in splits.items()}

    return Found("CSV files of pixels", list(splits.values()), load) if splits else None


@dataclass(frozen=True)
class Places:
    """How a CSV file of pixels is written: its separator, whether it has a header, and the column of the classes."""

    separator: str
    header: bool
    label: int


def _places(file: Path, label: str | None) -> Places | None:
    """Returns how a file is written that holds pixels and classes; None for any other file."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            first, second = stream.readline(LONGEST_LINE), stream.readline(LONGEST_LINE)
    except OSError:
        return None
    separator = max(",;\t", key=first.count)
    head, cells = ([cell.strip().strip('"') for cell in line.split(separator)] for line in (first, second or first))
    numbers = sum(map(_is_number, cells))
    if len(cells) != len(head) or len(head) <= LEAST_PIXELS or numbers < len(cells) - 1:
        return None
    header = sum(map(_is_number, head)) < len(head) - 1
    wanted = (label.lower(),) if label else LABELS
    named = [i for name in wanted for i, cell in enumerate(head) if header and cell.lower() == name]
    if not named and (label or isqrt(len(head) - 1) ** 2 != len(head) - 1):
        return None
    return Places(separator, header, named[0] if named else 0)


def csv(file: Path, places: Places) -> tuple[np.ndarray, list]:
    """Returns the values [rows, pixels] and the labels of a CSV file of pixels.

    Raises:
        Damaged: a cell holds no number.
    """
    import pandas

    how = {"header": 0 if places.header else None, "encoding": "utf-8-sig", "keep_default_na": False, "na_values": [""]}
    table = pandas.read_csv(file, sep=places.separator, **how)
    labels = table.iloc[:, places.label]
    pixels = table.drop(columns=table.columns[places.label])
    for name, kind in pixels.dtypes.items():
        if kind.kind not in "iuf":
            raise Damaged(f"its column {name} holds something else than numbers")
    if (empty := pixels.isna().any(axis=1)).any():
        raise Damaged(f"its row {int(empty.argmax())} has too few values")
    return pixels.to_numpy(), labels.astype(object).where(labels.notna(), None).tolist()


def _is_number(cell: str) -> bool:
    try:
        return float(cell) is not None
    except ValueError:
        return False
