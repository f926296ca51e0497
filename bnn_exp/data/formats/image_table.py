"""Reads images that a CSV or JSON-lines table names, such as metadata.csv. The table has columns of files and of classes."""

import csv
import json
from pathlib import Path, PureWindowsPath

from bnn_exp.data.columns import FILES, LABELS, label_column, refuse_identifiers, separator
from bnn_exp.data.image_suffixes import is_image
from bnn_exp.data.messages import named, shown, some
from bnn_exp.data.split_names import split_in, split_of
from bnn_exp.data.undecoded import Found, Rows, Source
from bnn_exp.errors import UserError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "usage")
Table = dict[str, list]  # the values of each column, by column name

Listing = tuple[Path, str, str | None]  # image file, split, class


def is_table(file: Path) -> bool:
    """Returns True if a file has the suffix of a CSV or JSON-lines table."""
    return file.suffix.lower() in TABLES


def find(root: Path, files: list[Path], label: str | None, where: str, sure: bool = True) -> Found | None:
    """Returns the tables among `files` whose rows name images, and these images; None if there is no such table.

    A row names an image relative to the table, relative to `root`, or by its file name alone.

    Args:
        root: the folder of the dataset.
        label: the column of the classes; None to find the column.
        where: the name of the dataset in error messages.
        sure: True if only a table can tell the classes. If False, a table needs a column with a usual name of labels.

    Raises:
        UserError: a row names a missing image, an unknown split, or an image that another row names too.
    """
    pictures = [file for file in files if is_image(file)]
    rows: list[Listing] = []
    used, by_name = [], _unique(pictures)
    for file in sorted(filter(is_table, files), key=str) if pictures else []:
        table = _table(file)
        found = table and _file_column(table, file.parent, root, by_name)
        if not found:
            continue
        name = f"{where}: {shown(file.relative_to(root))}"
        column, paths = found
        chosen = _label_column(table, column, label, name, sure)
        if chosen is None:
            continue
        if None in paths:
            row = paths.index(None)
            raise UserError(
                f"{name}: row {row} names {table[column][row]!r}, which does not exist\n"
                "allowed: a table whose files are all in the folder"
            )
        rows += zip(paths, _splits(table, paths, file, root, name), table[chosen], strict=True)
        used.append(file)
    if not rows:
        return None
    _refuse_twice(rows, used, root, where)
    splits: dict[str, list[Listing]] = {}
    for listing in rows:
        splits.setdefault(listing[1], []).append(listing)

    def load(source: Source) -> dict[str, Rows]:
        return {split: _rows(own, root) for split, own in splits.items()}

    plan = repr([(shown(path.relative_to(root)), split) for path, split, _ in rows])
    return Found("a table of images", [*used, *(path for path, _, _ in rows)], load, plan)


def _rows(rows: list[Listing], root: Path) -> Rows:
    paths = [path for path, _, _ in rows]
    relative = tuple(shown(path.relative_to(root)) for path in paths)
    return Rows(paths, [value for _, _, value in rows], None, named(paths), relative)


def _label_column(table: Table, files: str, label: str | None, where: str, sure: bool) -> str | None:
    """Returns the label column of a table whose column `files` names images; None if the table is not about classes."""
    splits = {name for name in table if name.lower() in SPLIT_COLUMNS}
    plain = {name: 0 for name in table if name != files and name not in splits and not _nested(table[name])}
    if not sure and label is None and not any(name.lower() in LABELS for name in plain):
        return None
    chosen = label_column(plain, label, where, some(list(table), 12))
    if label is None:
        refuse_identifiers(chosen, table[chosen], where, some(list(table), 12))
    return chosen


def _nested(values: list) -> bool:
    return any(isinstance(value, list | dict) for value in values)


def _splits(table: Table, paths: list[Path], file: Path, root: Path, where: str) -> list[str]:
    """Returns the split of each row: from the split column, else from the path of the table `file`, else from the folder of the
    row's image, else train."""
    column = next((name for name in table if name.lower() in SPLIT_COLUMNS), None)
    if column is None:
        own = split_in(file.relative_to(root))
        return [own or split_in(path.relative_to(root).parent / "_") or "train" for path in paths]
    splits = [split_of(str(value).strip()) for value in table[column]]
    if None in splits:
        value = table[column][splits.index(None)]
        raise UserError(
            f"{where}: {column}={value!r} in row {splits.index(None)} is no split\nallowed: train, validation, test"
        )
    return splits


def _refuse_twice(rows: list[Listing], used: list[Path], root: Path, where: str) -> None:
    seen: set[Path] = set()
    for path, _, _ in rows:
        if path in seen:
            names = some([shown(file.relative_to(root)) for file in used])
            raise UserError(f"{where}: {shown(path.relative_to(root))} is named twice in {names}\nallowed: each image once")
        seen.add(path)


def _table(file: Path) -> Table | None:
    """Returns the columns of a table file; None if the file is no table. Cells of a CSV file are text, or None if empty."""
    try:
        text = _text(file)
        if file.suffix.lower() in (".jsonl", ".ndjson"):
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
            return {name: [record.get(name) for record in records] for name in records[0]}
        delimiter = separator(text.lstrip().split("\n", 1)[0])
        head, *lines = csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    except (OSError, ValueError, AttributeError, LookupError, csv.Error):
        return None
    names = [name.strip() for name in head]
    lines = [[*line, *[""] * (len(names) - len(line))] for line in lines if any(cell.strip() for cell in line)]
    return {name: [line[i].strip() or None for line in lines] for i, name in enumerate(names) if name}


def _text(file: Path) -> str:
    """Returns the text of a file: UTF-8; UTF-16 if the file begins with the mark of UTF-16; else Windows-1252."""
    raw = file.read_bytes()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252")


def _unique(pictures: list[Path]) -> dict[str, Path]:
    """Returns the image files by name, each with and without its suffix. Names that several files share are left out."""
    found: dict[str, Path | None] = {}
    for file in pictures:
        for name in {file.name, file.stem}:
            found[name] = None if name in found else file
    return {name: file for name, file in found.items() if file is not None}


def _file_column(table: Table, folder: Path, root: Path, by_name: dict[str, Path]) -> tuple[str, list[Path | None]] | None:
    """Returns the name of the column of files, and the image of each row (None if missing).

    None if no column names an existing image. The other arguments are those of `_picture`.
    """
    known = {name: name.lower().replace(" ", "_") for name in table}
    for column in sorted((name for name in table if known[name] in FILES), key=lambda name: FILES.index(known[name])):
        paths = [_picture(str(cell), folder, root, by_name) if cell is not None else None for cell in table[column]]
        if any(paths):
            return column, paths
    return None


def _picture(name: str, folder: Path, root: Path, by_name: dict[str, Path]) -> Path | None:
    """Returns the image that the cell `name` names; None if missing.

    The name is relative to `folder` or `root`, or it is a key of `by_name`, the images by their file names.
    """
    name = PureWindowsPath(name).as_posix() if "\\" in name else name
    for place in (folder, root):
        file = place / name
        try:
            if ".." not in file.parts and file.is_relative_to(root) and file.is_file():
                return file
        except OSError:  # the cell is no valid file name
            return None
    return by_name.get(name)  # a file name without a folder names an image in any folder
