"""Reads tables of images: parquet, arrow and JSON-lines files. The column types of the library `datasets` tell
images and classes.

The files are read in place. The cache of `datasets` is not used, because this cache identifies files by path and time.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from bnn_exp.data.columns import LABELS, NO_LABELS, label_column, refuse_identifiers
from bnn_exp.data.formats.arrow_table import KINDS, Chained, Column, Table, reading
from bnn_exp.data.messages import shown
from bnn_exp.data.pixel_arrays import LEAST_PIXELS, as_pictures
from bnn_exp.data.split_names import by_split
from bnn_exp.data.undecoded import Found, Rows, Source
from bnn_exp.errors import UserError

SHARD = re.compile(r"-\d{5}-of-(\d{5})")
SPLIT_COLUMNS = ("split", "subset", "partition")  # such a column is refused: each table holds one split
NO_TABLES = {"metadata.jsonl"}


def find(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Returns the parquet files among `files`, else arrow files, else JSON-lines files that hold pixels; None if none."""
    for suffixes in KINDS:
        those = [file for file in files if file.suffix.lower() in suffixes and file.name.lower() not in NO_TABLES]
        if ".jsonl" in suffixes:
            those = [file for file in those if _holds_pixels(file)]
        if those:
            _refuse_missing_shards(those, where)
            return _found(by_split(those, root), label)
    return None


def _refuse_missing_shards(files: list[Path], where: str) -> None:
    """Raises UserError for an incomplete set of shards, such as train-00000-of-00003.parquet alone."""
    there: dict[tuple[Path, str, str], int] = {}
    for file in files:
        if match := SHARD.search(file.name):
            key = file.parent, file.name[: match.start()], match[1]
            there[key] = there.get(key, 0) + 1
    for (_, name, count), found in there.items():
        if found < int(count):
            raise UserError(f"{where}: {found} of {int(count)} files of {shown(name)} are there\nallowed: all of them")


def _found(splits: dict[str, list[Path]], label: str | None) -> Found:
    def load(source: Source) -> dict[str, Rows]:
        return {split: _joined([_rows(source, file, label) for file in own], source) for split, own in splits.items()}

    files = [file for own in splits.values() for file in own]
    plan = repr([(split, [file.name for file in own]) for split, own in splits.items()])
    return Found(f"{files[0].suffix} files", files, load, plan)


def _rows(source: Source, file: Path, label: str | None) -> Rows:
    """Returns the rows of the table in one file. `label` is the column of the classes; None to find the column."""
    name = shown(file.relative_to(source.root))
    with reading(where := f"{source.where}: {name}"):
        return rows_of(Table(file), where, label)


def rows_of(table: Table, where: str, label: str | None) -> Rows:
    """Returns the rows of a table. The types of its columns tell images and classes.

    Args:
        where: the name of the table in error messages.
        label: the column of the classes; None to find the column.

    Raises:
        UserError: no column holds images or no column holds classes.
    """
    import datasets
    import pyarrow.types as kinds

    if parted := [name for name, kind in table.types.items() if name.lower() in SPLIT_COLUMNS and _is_text(kind)]:
        raise UserError(
            f"{where}: its column {parted[0]} tells splits apart\nallowed: a file for each split, or no such column"
        )
    named = {name: len(f.names) for name, f in table.features.items() if isinstance(f, datasets.ClassLabel)}
    images = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    images = images or [name for name, kind in table.types.items() if _is_encoded(kind)]
    nested = [name for name, kind in table.types.items() if _depth(kind) and name not in images]
    plain = {
        name: 0
        for name, kind in table.types.items()
        if _is_text(kind)
        or any(is_kind(kind) for is_kind in (kinds.is_integer, kinds.is_boolean, kinds.is_dictionary, kinds.is_floating))
    }
    all_columns = ", ".join(f"{name} ({_kind(feature)})" for name, feature in list(table.features.items())[:12])
    all_columns += f" and {len(table.features) - 12} more" if len(table.features) > 12 else ""
    columns = named | {name: 0 for name in plain if name not in named}
    if len(images) == 1 or (not images and len(nested) == 1):
        chosen = label_column(columns if label or not named else named, label, where, all_columns)
        classes = tuple(table.features[chosen].names) if chosen in named else None
        labels = table.values(chosen)
        if label is None and chosen not in named:
            refuse_identifiers(chosen, labels, where, all_columns)
        if images:
            return Rows(Column(table, images[0], where), labels, classes)
        return Rows(as_pictures(where, _numbers(table.values(nested[0]), where, nested[0])), labels, classes)
    numbers = [name for name in plain if not _is_text(table.types[name]) and not kinds.is_dictionary(table.types[name])]
    if not images and len(numbers) > LEAST_PIXELS:
        called = {name: 0 for name in columns if name == label or name.lower() in LABELS}
        chosen = label_column(called, label, where, all_columns)
        own = _by_their_numbers([name for name in numbers if name != chosen and name.lower() not in NO_LABELS])
        pixels = np.stack([np.asarray(table.values(name)) for name in own], 1)
        classes = tuple(table.features[chosen].names) if chosen in named else None
        return Rows(as_pictures(where, pixels), table.values(chosen), classes)
    raise UserError(
        f"{where}: its columns are {all_columns}\n"
        "allowed: one column of images (Image, or bytes) and one of classes (ClassLabel, numbers or texts)"
    )


def _by_their_numbers(names: list[str]) -> list[str]:
    """Returns the names of pixel columns, sorted by the numbers in the names: the column order of a file has no effect.

    Without a different number in every name, the order stays as it is.
    """
    numbers = {name: tuple(map(int, re.findall(r"\d{1,9}", name))) for name in names}
    return (
        sorted(names, key=numbers.__getitem__) if all(numbers.values()) and len(set(numbers.values())) == len(names) else names
    )


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def _is_encoded(kind: Any) -> bool:
    """Returns True if a column of this pyarrow type holds encoded images: bytes, or structs with a field "bytes"."""
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return any(_is_encoded(kind.field(i).type) and kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind)


def _depth(kind: Any) -> int:
    """Returns the nesting depth of lists of numbers in a pyarrow type; 0 if the type holds none."""
    import datasets
    import pyarrow.types as kinds

    if isinstance(kind, datasets.features.features._ArrayXDExtensionType):
        return len(kind.shape)
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        inner = kind.value_type
        return 1 + _depth(inner) if _depth(inner) or kinds.is_integer(inner) or kinds.is_floating(inner) else 0
    return 0


def _numbers(cells: list, where: str, column: str) -> np.ndarray:
    try:
        values = np.array(cells)
        if values.dtype == object:
            raise ValueError("rows of different sizes")
    except ValueError as error:
        raise UserError(f"{where}: its column {column} holds {error}\nallowed: images of one size") from error
    return values


def _kind(feature: Any) -> str:
    return getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else type(feature).__name__


def _joined(parts: list[Rows], source: Source) -> Rows:
    """Returns the rows of several files as the rows of one split."""
    if len(parts) == 1:
        return parts[0]
    if len({part.classes for part in parts}) == 1:
        labels, classes = [label for part in parts for label in part.labels], parts[0].classes
    else:  # the files have different class names: merge the names
        order = dict.fromkeys(name for part in parts for name in part.classes or ())
        labels = [
            part.classes[label] if part.classes and isinstance(label, int) and 0 <= label < len(part.classes) else label
            for part in parts
            for label in part.labels
        ]
        classes = None
        if all(part.classes is not None for part in parts):
            place, classes = {name: i for i, name in enumerate(order)}, tuple(order)
            labels = [place.get(label, -1) for label in labels]
    arrays = [part.pictures for part in parts if isinstance(part.pictures, np.ndarray)]
    if arrays and len(arrays) == len(parts) and len({array.shape[1:] for array in arrays}) == 1:
        return Rows(np.concatenate(arrays), labels, classes)
    if arrays:
        raise UserError(f"{source.where}: its files hold images of different shapes\nallowed: files of one kind")
    return Rows(Chained([part.pictures for part in parts]), labels, classes)


def _holds_pixels(file: Path) -> bool:
    """Returns True if the first record of a JSON-lines file holds a list."""
    try:
        with file.open(encoding="utf-8") as stream:
            record = json.loads(stream.readline(1_000_000))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and any(isinstance(value, list) for value in record.values())
