"""Reads pictures that a table names: a metadata.csv or metadata.jsonl, with a column of files and one of classes."""

import json
from pathlib import Path

from bnn_exp.data import images
from bnn_exp.data.columns import FILES, label_column
from bnn_exp.data.rows import WHOLE, Found, Rows, Source, named, shown, some, split_in, split_of
from bnn_exp.errors import UserError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


def find(root: Path, files: list[Path], label: str | None, where: str) -> Found | None:
    """Finds tables whose rows name pictures, relative to the table, to the folder, or by their names alone."""
    pictures = [file for file in files if images.is_picture(file)]
    if not pictures:
        return None
    lists = {file: names for file in files if file.suffix.lower() in TABLES and (names := _columns(file))}
    rows: dict[str, list[tuple[Path, str | None]]] = {}
    used, by_name = [], _unique(pictures)
    for file, names in sorted(lists.items(), key=lambda item: str(item[0])):
        table = _table(file, where)
        found = _file_column(table, names, file.parent, root, by_name, where)
        if found is None:
            continue
        column, paths = found
        candidates = {name: 0 for name in names if name != column and split_of(name) is None and name.lower() != "split"}
        chosen = label_column(candidates, label, f"{where}: {shown(file.relative_to(root))}", some(names, 12))
        own = next((name for name in names if name.lower() == "split"), None)
        for i, (path, value) in enumerate(zip(paths, table[chosen], strict=True)):
            said = own and split_of(str(table[own][i]))
            split = said or split_in(file.relative_to(root)) or split_in(path.relative_to(root).parent / "_") or "train"
            rows.setdefault(split, []).append((path, value))
        used.append(file)
    if not rows:
        return None

    def load(source: Source) -> dict[str, Rows]:
        loaded = {}
        for split, own in rows.items():
            paths = [path for path, _ in own]
            relative = tuple(shown(path.relative_to(root)) for path in paths)
            loaded[split] = Rows(paths, [value for _, value in own], None, named(paths), relative)
        return loaded

    return Found("a table of pictures", [*used, *{path: None for split in rows.values() for path, _ in split}], load)


def _columns(file: Path) -> list[str]:
    """Returns the names of a table's columns; none for what is no table."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            first = stream.readline(100_000)
        if file.suffix.lower() in (".jsonl", ".ndjson"):
            record = json.loads(first)
            return list(record) if isinstance(record, dict) else []
        return [cell.strip().strip('"') for cell in first.rstrip("\r\n").split(_separator(first))]
    except (OSError, ValueError):
        return []


def _separator(line: str) -> str:
    return max(",;\t", key=line.count)


def _table(file: Path, where: str) -> dict[str, list]:
    """Returns the columns of a table. A cell of a CSV file is text, or None where it is empty."""
    import pandas

    try:
        if file.suffix.lower() in (".jsonl", ".ndjson"):
            records = [json.loads(line) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            return {name: [record.get(name) for record in records] for name in records[0]}
        with file.open(encoding="utf-8-sig") as stream:
            separator = _separator(stream.readline(100_000))
        text = {"dtype": str, "encoding": "utf-8-sig", "keep_default_na": False, "skipinitialspace": True}
        table = pandas.read_csv(file, sep=separator, **text)
        return {str(name).strip(): [cell or None for cell in table[name]] for name in table.columns}
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: {shown(file.name)} can't be read ({reason})\n{WHOLE}") from error


def _unique(pictures: list[Path]) -> dict[str, Path]:
    """Returns the pictures by their names, with and without suffix, as far as these are of one picture alone."""
    found: dict[str, Path | None] = {}
    for file in pictures:
        for name in {file.name, file.stem}:
            found[name] = None if name in found else file
    return {name: file for name, file in found.items() if file is not None}


def _file_column(table: dict[str, list], names: list[str], folder: Path, root: Path, by_name: dict[str, Path], where: str):
    """Returns the column of files and the picture of each row; None where no column is one.

    Raises:
        UserError: a file that a row names is not there.
    """
    for column in sorted(names, key=lambda name: FILES.index(name.lower()) if name.lower() in FILES else len(FILES)):
        if column.lower() not in FILES or column not in table or not table[column]:
            continue
        paths = [_picture(str(cell), folder, root, by_name) if cell is not None else None for cell in table[column]]
        if not any(paths):
            continue
        if None in paths:
            row = paths.index(None)
            raise UserError(
                f"{where}: row {row} of the table names {table[column][row]!r}, which is not there\n"
                "allowed: a table whose files are all in the folder"
            )
        return column, paths
    return None


def _picture(name: str, folder: Path, root: Path, by_name: dict[str, Path]) -> Path | None:
    for place in (folder, root):
        file = place / name
        if file.is_file() and file.is_relative_to(root) and ".." not in file.parts:
            return file
    return by_name.get(Path(name).name)
