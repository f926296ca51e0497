"""A dataset before decoding: the rows of each split as they lie in files, and the files that decide the rows."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnn_exp.data.messages import WHOLE, shown
from bnn_exp.errors import UserError
from bnn_exp.records.files import file_sha256


@dataclass
class Rows:
    """One split before decoding.

    Args:
        pictures: encoded images, which are read during iteration; or values of any numeric type, [rows, height, width] or
            [rows, height, width, channels].
        labels: one label per row: a class name, a number, a bool, or an index into `classes`; None if the row has no label.
        classes: the names that the labels index; None if the labels are the classes themselves.
        name: a function that returns the words for a row number in error messages, without the split.
        files: the file of each row, relative to the dataset folder; empty if rows are not files.
    """

    pictures: Any
    labels: Sequence[Any]
    classes: tuple[str, ...] | None = None
    name: Callable[[int], str] = "image {}".format
    files: tuple[str, ...] = ()


@dataclass
class Source:
    """A dataset that a reader has found.

    Args:
        where: the key and the value of the configuration that name the dataset, for error messages.
        root: the folder that contains the files.
        files: every file whose name or bytes decide a row.
        load: a function that reads the rows of each split from the dataset.
        plan: a text about the role of each file. The text tells apart datasets with equal files that are read differently.
        notes: sentences about how the dataset is read, for the user.
        warnings: sentences about odd, but usable data.
        kept: an object that must live as long as the source, because the rows lie in this object.
    """

    where: str
    root: Path
    files: list[Path]
    load: Callable[["Source"], dict[str, Rows]]
    plan: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kept: Any = None

    def digest(self) -> str:
        """Returns the SHA-256 of the dataset's plan and of the names and bytes of its files, as hexadecimal digits.

        Raises:
            UserError: a file can't be read.
        """
        digest = hashlib.sha256(self.plan.encode())
        for file in self.files:
            try:
                content = file_sha256(file)
            except OSError as error:
                raise UserError(f"{self.where}: {shown(file)} can't be read ({error.strerror})\n{WHOLE}") from error
            digest.update(f"{shown(file.relative_to(self.root))} {content}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Found:
    """The files and rows that one reader finds in a folder.

    Args:
        kind: the name of the format, for error messages.
        files: the files that decide the rows.
        load: a function that reads the rows of each split.
        plan: a text about the role of each file.
        columns: True if `dataset.label` may choose a column.
    """

    kind: str
    files: list[Path]
    load: Callable[[Source], dict[str, Rows]]
    plan: str = ""
    columns: bool = True
