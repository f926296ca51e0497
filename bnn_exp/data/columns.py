"""Decides which column of a table holds the classes. Also lists the usual names of label and file columns."""

from collections.abc import Mapping, Sequence

from bnn_exp.data.messages import some
from bnn_exp.errors import UserError

LABELS = ("label", "labels", "class", "classes", "class_name", "classname", "category", "target", "targets", "y", "digit")
NO_LABELS = ("id", "index", "idx", "key", "__index_level_0__", "unnamed: 0", "width", "height", "size", "md5", "sha256")
FILES = (
    "file_name", "filename", "file", "image", "image_path", "path", "filepath", "file_path", "img", "image_name",
    "image_id", "id",
)  # fmt: skip


def separator(line: str) -> str:
    """Returns the separator of cells in a CSV line: comma, semicolon or tab, whichever is most frequent."""
    return max(",;\t", key=line.count)


def refuse_identifiers(column: str, values: Sequence, where: str, columns: str) -> None:
    """Refuses a label column that holds a different value in every row, unless its name is a common name of labels.

    Args:
        column, values: the name of the column, and its value in each row.
        where: the name of the table in error messages.
        columns: all columns of the table as text, for error messages.

    Raises:
        UserError: the column identifies rows instead of classes.
    """
    if column.lower() not in LABELS and len(set(values)) == len(values) > 2:
        label_column({}, None, where, columns)  # raises the error for a table without a label column


def label_column(candidates: Mapping[str, int], label: str | None, where: str, columns: str = "") -> str:
    """Returns the name of the column that holds the classes.

    The choice is `label` if given; else the column with the most class names; else a column with a common name such as
    "label"; else the only column that can hold classes.

    Args:
        candidates: the number of class names of each possible column; 0 if the column holds the classes themselves.
        label: the setting `dataset.label`; None if the user names no column.
        where: the name of the table in error messages.
        columns: all columns of the table as text, for error messages.

    Raises:
        UserError: no column fits, or several fit equally well.
    """
    if label is not None:
        if label not in candidates:
            there = some(list(candidates), 12) or "none here"
            raise UserError(f"dataset.label={label} is not a column of classes\nallowed: {there}")
        return label
    if any(candidates.values()):
        return max(candidates, key=candidates.__getitem__)
    candidates = {name: 0 for name in candidates if name.lower() not in NO_LABELS + FILES}
    called = [name for known in LABELS for name in candidates if name.lower() == known]
    if called or len(candidates) == 1:
        return (called or list(candidates))[0]
    columns = columns or some(list(candidates), 12)
    if candidates:
        raise UserError(f"{where}: several columns may be the classes: {columns}\nallowed: dataset.label=COLUMN says which")
    raise UserError(f"{where}: its columns are {columns}\nallowed: one column of images and one of classes")
