"""Reads CSV files of pixels: one column of classes and one column per pixel of a grey square image."""

import gzip
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from bnn_exp.data.columns import LABELS, NO_LABELS, separator
from bnn_exp.data.messages import shown, some
from bnn_exp.data.pixel_arrays import LEAST_PIXELS, Damaged, paired, read
from bnn_exp.data.split_names import split_in
from bnn_exp.data.undecoded import Found, Rows, Source
from bnn_exp.errors import UserError

LONGEST_LINE = 4_000_000  # the most characters that are read of a line
SUFFIXES = (".csv", ".tsv", ".csv.gz")


@dataclass(frozen=True)
class Form:
    """The layout of a CSV file.

    Args:
        separator: the sign between cells.
        header: the column names; empty if the file has no header.
        label: the name of the label column; None without a header.
    """

    separator: str
    header: tuple[str, ...]
    label: str | None


def find(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Returns the CSV file of pixels of each split; None if there is no such file.

    Ignores a file without classes, such as the test rows of a competition.

    Args:
        label: the column of the classes; None for a column with a usual name.

    Raises:
        UserError: a split has two files, a header names no label column, or the train file has another layout than the others.
    """
    forms: dict[str, tuple[Path, Form]] = {}
    for file in sorted(files, key=str):
        name = shown(file.relative_to(root))
        form = _form(file, label, f"{where}: {name}") if file.name.lower().endswith(SUFFIXES) else None
        split = split_in(file.relative_to(root)) or "train"
        if form and split in forms:
            both = some([shown(forms[split][0].relative_to(root)), name])
            raise UserError(f"{where}: two CSV files of {split} rows: {both}\nallowed: one a split")
        if form:
            forms[split] = file, form
    if not forms:
        return None
    tables = [file for file in files if file.name.lower().endswith(SUFFIXES) and split_in(file.relative_to(root)) == "train"]
    if "train" not in forms and tables:
        name = shown(tables[0].relative_to(root))
        raise UserError(
            f"{where}: {name} holds no column of classes and one for each pixel\nallowed: a whole file, as the others"
        )

    def load(source: Source) -> dict[str, Rows]:
        order = forms["train"][1].header if "train" in forms else ()
        return {split: paired(source, *read(source, file, (form, order), csv)) for split, (file, form) in forms.items()}

    return Found("CSV files of pixels", [file for file, _ in forms.values()], load, repr(forms))


def _form(file: Path, label: str | None, where: str) -> Form | None:
    """Returns the layout of a file that holds pixels and classes; None for any other file."""
    try:
        with (gzip.open if file.suffix.lower() == ".gz" else open)(
            file, "rt", encoding="utf-8-sig", errors="replace"
        ) as stream:
            first, second = stream.readline(LONGEST_LINE), stream.readline(LONGEST_LINE)
    except (OSError, EOFError):
        return None
    sign = separator(first)
    head, cells = ([cell.strip().strip('"') for cell in line.rstrip("\r\n").split(sign)] for line in (first, second or first))
    if len(cells) != len(head) or len(head) <= LEAST_PIXELS or sum(map(_is_number, cells)) < len(cells) - 1:
        return None
    if sum(map(_is_number, head)) >= len(head) - 1:
        return Form(sign, (), None) if isqrt(len(head) - 1) ** 2 == len(head) - 1 else None
    wanted = (label.lower(),) if label else LABELS
    named = [name for known in wanted for name in head if name.lower() == known]
    pixels = [name for name in head if name.lower() not in NO_LABELS and name]
    if not named and isqrt(len(pixels) - 1) ** 2 == len(pixels) - 1 > 0:
        raise UserError(f"{where}: no column is called label\nallowed: dataset.label=COLUMN, the column of the classes")
    return Form(sign, tuple(head), named[0]) if named else None


def csv(file: Path, how: tuple[Form, tuple[str, ...]]) -> tuple[np.ndarray, list]:
    """Returns the values [rows, pixels] and the labels of a CSV file of pixels.

    Args:
        how: (layout of the file, column names of the train file in their order). Without names the columns keep their order.

    Raises:
        Damaged: a cell holds no number, the columns differ from those of the train file, or the label column is unclear.
    """
    import pandas

    form, order = how
    reading = {"header": 0 if form.header else None, "encoding": "utf-8-sig", "keep_default_na": False, "na_values": [""]}
    table = pandas.read_csv(file, sep=form.separator, **reading)
    if form.header:
        table.columns = form.header
        if order and set(order) != set(form.header):
            raise Damaged("its columns are not those of the train rows")
        table = table[list(order or form.header)]
        label: Any = form.label
    else:
        label = _label_column(table)
    labels = table[label]
    pixels = table.drop(columns=[label, *(name for name in form.header if name.lower() in NO_LABELS or not name)])
    for name, kind in pixels.dtypes.items():
        if kind.kind not in "iuf":
            raise Damaged(f"its column {name} holds something else than numbers")
    if (empty := pixels.isna().any(axis=1)).any():
        raise Damaged(f"its row {int(empty.argmax())} has too few values")
    return pixels.to_numpy(), labels.astype(object).where(labels.notna(), None).tolist()


def _label_column(table: Any) -> int:
    """Returns the label column of a table without a header: the first or the last column, if exactly one looks like labels."""

    def is_label(column: int) -> bool:
        values = table[column].dropna().unique()
        if table[column].dtype.kind not in "iu":
            return table[column].dtype.kind not in "f" and len(values) > 1
        return len(values) > 1 and values.min() in (0, 1) and values.max() - values.min() + 1 == len(values) <= len(table) / 2

    able = [column for column in (0, table.shape[1] - 1) if is_label(column)]
    if len(able) != 1:
        raise Damaged("without a header nothing says whether the first or the last column holds the classes")
    return able[0]


def _is_number(cell: str) -> bool:
    try:
        return float(cell) is not None
    except ValueError:
        return False
