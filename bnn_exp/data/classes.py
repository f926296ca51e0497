"""Matches labels to classes by name, across the splits of a dataset."""

import unicodedata

import numpy as np

from bnn_exp.data.messages import some
from bnn_exp.data.undecoded import Rows
from bnn_exp.errors import UserError


def classes_of(splits: dict[str, Rows], where: str) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Returns the class names, and the labels of each split as indices of these names, int64 [rows].

    If a split has a list of class names, the lists decide the order: the train classes, then the classes of other splits. If
    no split has a list, whole numbers are sorted by size, and other texts follow alphabetically.

    Args:
        splits: the rows of each split, by the name of the split.
        where: the name of the dataset in error messages.

    Raises:
        UserError: a row has no label, or a split has no class in common with the train rows.
    """
    named = {split: _names(rows, f"{where}: {split}") for split, rows in splits.items()}
    order: dict[str, None] = {}
    for split, rows in splits.items():
        own = map(_composed, rows.classes) if rows.classes is not None else sorted(set(named[split]), key=_by_size_or_alphabet)
        order |= dict.fromkeys(own)
    if not any(rows.classes is not None for rows in splits.values()):
        order = dict.fromkeys(sorted(order, key=_by_size_or_alphabet))
    train = set(named.get("train", ()))
    for split, names in named.items():
        if train and train.isdisjoint(names):
            there = some(sorted(set(names)))
            raise UserError(
                f"{where}: the {split} rows have other classes ({there}) than the train rows ({some(sorted(train))})\n"
                "allowed: splits whose classes have the same names"
            )
    place = {name: i for i, name in enumerate(order)}
    return tuple(order), {split: np.array([place[name] for name in names], np.int64) for split, names in named.items()}


def _names(rows: Rows, what: str) -> list[str]:
    """Returns the class name of each row. Error messages name the rows by the words `what`."""
    names = []
    for i, label in enumerate(rows.labels):
        if rows.classes is not None:
            known = isinstance(label, int | np.integer) and 0 <= label < len(rows.classes)
            name = rows.classes[label] if known else None
        else:
            name = _text(label)
        if name is None:
            raise UserError(
                f"{what} {rows.name(i)} has no label\n"
                "allowed: a dataset of which every row has one; of loose images, a folder a class (train/CLASS/…, test/CLASS/…)"
            )
        names.append(_composed(name))
    return names


def _text(label: object) -> str | None:
    """Returns the class name for a label of any type; None if the label is empty or no class."""
    if label is None or (isinstance(label, float) and not label.is_integer()):
        return None
    if isinstance(label, bool | np.bool_):
        return "true" if label else "false"
    if isinstance(label, bytes):
        label = label.decode("utf-8", "replace")
    return (str(int(label)) if isinstance(label, float | np.number) else str(label)) or None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def _by_size_or_alphabet(name: str) -> tuple:
    """Returns a sort key: whole numbers by size, then other texts alphabetically."""
    digits = name.removeprefix("-")
    whole = digits.isascii() and digits.isdigit() and len(digits) < 19 and str(int(name)) == name
    return (0, int(name), name) if whole else (1, 0, name)


def missing(classes: tuple[str, ...], labels: dict[str, np.ndarray]) -> list[str]:
    """Returns a sentence for each split in which some classes have no rows. `labels` holds the class indices of each split."""
    lines = []
    for split, own in labels.items():
        counts = np.bincount(own, minlength=len(classes))
        without = [name for name, count in zip(classes, counts, strict=True) if not count]
        if without:
            n = len(without)
            lines.append(f"{n} {'class has' if n == 1 else 'classes have'} no {split} rows: {some(without)}")
    return lines
