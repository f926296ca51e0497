"""Tables in parquet, arrow or JSON-lines files, or from the hub, which are read column by column."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnn_exp.data.images import Encoded
from bnn_exp.data.messages import WHOLE, short_reason
from bnn_exp.errors import UserError

KINDS = ((".parquet", ".pq"), (".arrow",), (".jsonl", ".ndjson"))
ROWS_AT_ONCE = 256


class Column:
    """The encoded images in a column of a table. Iteration reads the images.

    Args:
        table: the table of a file, or of a split on the hub.
        column: the name of the column. It holds bytes, or structs with a field "bytes".
        where: the name of the table in error messages.

    Raises:
        UserError: the table is damaged. Iteration raises this error.
    """

    def __init__(self, table: "Table", column: str, where: str):
        self.table, self.column, self.where = table, column, where

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Encoded]:
        count = 0
        with reading(self.where):
            for chunk in self.table.batches(self.column):
                for cell in chunk.to_pylist():
                    yield cell.get("bytes") if isinstance(cell, dict) else cell
                count += len(chunk)
            if count != len(self):
                raise ValueError(f"it should hold {len(self)} rows, and holds {count}")


class Chained:
    """Several collections of images as one collection: the images of `parts`, one part after the other."""

    def __init__(self, parts: list):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator:
        for part in self.parts:
            yield from part


class Table:
    """A parquet, arrow or JSON-lines file: the features of its columns, its length, and its columns in pieces.

    Raises:
        Exception: pyarrow raises exceptions of many types for a damaged file.
    """

    def __init__(self, file: Path):
        import datasets
        import pyarrow as pa
        import pyarrow.json
        import pyarrow.parquet

        self.pieces = None
        if file.suffix.lower() in KINDS[0]:
            self.file = pyarrow.parquet.ParquetFile(file)
            schema, self.length = self.file.schema_arrow, self.file.metadata.num_rows
        else:
            table = pyarrow.json.read_json(file) if file.suffix.lower() in KINDS[2] else _arrow(pa, file)
            schema, self.length, self.pieces = table.schema, len(table), table
        self.features: dict[str, Any] = dict(datasets.Features.from_arrow_schema(schema))
        self.types = {name: schema.field(name).type for name in schema.names}

    def __len__(self) -> int:
        return self.length

    def batches(self, column: str) -> Iterator:
        """Yields the values of a column in pieces, as pyarrow arrays."""
        if self.pieces is not None:
            yield from self.pieces[column].chunks
        else:
            for batch in self.file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                yield batch.column(0)

    def values(self, column: str) -> list:
        """Returns a column as a list of Python values."""
        return [value for chunk in self.batches(column) for value in chunk.to_pylist()]


def _arrow(pa: Any, file: Path) -> Any:
    with pa.memory_map(str(file)) as stream:
        try:
            return pa.ipc.open_stream(stream).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(stream).read_all()


class HubSplit(Table):
    """A table with the rows of a split that the library `datasets` has downloaded."""

    def __init__(self, split: Any):
        self.split, self.features = split, dict(split.features)
        self.types = {name: split.features.arrow_schema.field(name).type for name in split.features}
        self.length, self.pieces = len(split), None

    def batches(self, column: str) -> Iterator:
        rows = self.split.select_columns(column).with_format("arrow")
        for table in rows.iter(ROWS_AT_ONCE):
            yield from table[column].chunks


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Context manager: its body reads the table `where`. Any exception becomes a UserError: the table can't be read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow's exceptions have no common base class
        raise UserError(f"{where} can't be read ({short_reason(error)})\n{WHOLE}") from error
