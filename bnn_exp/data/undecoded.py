"""Describes a dataset before decoding: the rows of each split as they lie in files, and the files that decide them."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnn_exp.data.images import Encoded
from bnn_exp.errors import UserError

SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "t10k"),
}
"""The words in names of files and folders that stand for a split, in any case."""


WHOLE = "allowed: a whole file that you may read; perhaps copy or download it again"


def split_of(word: str) -> str | None:
    """Returns the split that a word stands for: train, validation, test, or None."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), None)


def split_among(name: str) -> str | None:
    """Returns the split that a name says among other words, as seg_train, train_images or train2017 do."""
    found = {split for word in re.findall(r"t10k|[a-z]+", name.lower()) if (split := split_of(word))}
    return found.pop() if len(found) == 1 else None


@dataclass
class Rows:
    """One split before decoding.

    Args:
        pictures: encoded pictures, which are read as they are iterated; or values, of any type of numbers,
            [rows, height, width] or [rows, height, width, channels].
        labels: one a row: a class's name, a number, a bool, an index into `classes`; None where there is none.
        classes: the names that the labels are indices of; None where the labels are the classes themselves.
        name: gives an error's words for a row's number, without the split.
        files: of each row the file that it was, relative to the dataset's folder; empty where rows are no files.
    """

    pictures: Collection[Encoded] | np.ndarray
    labels: Sequence[Any]
    classes: tuple[str, ...] | None = None
    name: Callable[[int], str] = "image {}".format
    files: tuple[str, ...] = ()


@dataclass
class Source:
    """A dataset that was found.

    Args:
        where: the key and value of the configuration that name it, for errors.
        root: the folder that its files are in.
        files: every file whose name or bytes decide a row.
        plan: tells datasets apart whose files are read in different ways.
        load: reads the rows of each split.
        notes: sentences about how it is read, which the user should know.
        warnings: sentences about what is odd, but usable.
        kept: lives as long as the source, since its rows lie in it.
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
        """Returns the SHA-256 of the names and the bytes of its files, and of the plan by which they are read.

        Raises:
            UserError: a file can't be read.
        """
        digest = hashlib.sha256(self.plan.encode())
        for file in self.files:
            try:
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"{self.where}: {shown(file)} can't be read ({error.strerror})\n{WHOLE}") from error
            digest.update(f"{shown(file.relative_to(self.root))} {content}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Found:
    """The rows that one form of a dataset finds in a folder.

    Args:
        kind: the form, in an error's words.
        files: those that decide the rows.
        load: reads the rows of each split.
        plan: which file is what.
        columns: dataset.label may choose among columns.
    """

    kind: str
    files: list[Path]
    load: Callable[[Source], dict[str, Rows]]
    plan: str = ""
    columns: bool = True


def shown(path: Path | str) -> str:
    """Returns a name as text that UTF-8 can hold, accents composed. A name that is no UTF-8 is taken for Latin-1."""
    raw = str(path)
    try:
        raw.encode()
    except UnicodeEncodeError:
        raw = raw.encode("utf-8", "surrogateescape").decode("latin-1")
    return unicodedata.normalize("NFC", raw)


def named(paths: Sequence[Path]) -> Callable[[int], str]:
    """Returns the function that names a row by its number and its file."""
    return lambda i: f"image {i} ({shown(paths[i])})"


def split_in(path: Path) -> str | None:
    """Returns the split of a table's file, by its relative path: its own name decides, else its folders' from the top."""
    return next(filter(None, map(split_among, (path.name, *path.parts[:-1]))), None)


def by_split(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Returns the files of each split; where no name says a split, all are train files."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(files, key=str):
        if split := split_in(file.relative_to(root)):
            splits.setdefault(split, []).append(file)
    return splits or {"train": sorted(files, key=str)}


def some(names: Sequence[str], most: int = 3) -> str:
    """Returns the first names, and how many more there are: a, b, c and 5 more."""
    first = ", ".join(name if len(name) <= 60 else name[:59] + "…" for name in names[:most])
    return first + (f" and {len(names) - most} more" if len(names) > most else "")
