"""Keeps decoded datasets in files: the cache lies in $BNN_EXP_CACHE/datasets, else in the user's cache folder.

The name of a cache file depends on the settings, and on the bytes of the files that decide the rows (or on the hub name).
Only one process at a time makes a cache file.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bnn_exp.config.paths import cache_root
from bnn_exp.data.arrays import Arrays, content_key
from bnn_exp.records.files import replacing, writable

FORMAT = 3  # the version of the cache files: with another number every file is made anew
# The fields of Arrays that a cache file keeps in its metadata.
FACTS = ("classes", "mean", "std", "key", "notes", "warnings", "test_names", "train_names", "own_test")


def cache_folder() -> Path:
    """Returns the folder of decoded datasets: $BNN_EXP_CACHE/datasets, else a folder in the user's cache folder."""
    return cache_root() / "datasets"


def cached(name: str, content: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns a dataset from the cache. If the cache lacks the dataset, calls `make` and keeps its result.

    Args:
        name: the dataset's name, with which the file name begins.
        content: a text that decides the rows. Equal texts mean equal rows.

    Raises:
        UserError: the cache folder can't be written.
    """
    found_by = hashlib.sha256(f"{FORMAT}\0{content}".encode()).hexdigest()
    file = cache_folder() / f"{name}-{found_by[:16]}.safetensors"
    if (arrays := _load(file, found_by)) is None:
        with _locked(file):
            if (arrays := _load(file, found_by)) is None:  # another process may have made the file meanwhile
                arrays = make()
                _save(file, arrays, found_by)
    return arrays


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Context manager: while the body runs, no other process makes the cache file `file`.

    Raises:
        UserError: the cache folder can't be written.
    """
    with _writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Context manager: if the body fails to write, the exception becomes a UserError that names the cache folder."""
    with writable(folder, "a writable cache folder with space, named by the variable BNN_EXP_CACHE"):
        try:
            yield
        except SafetensorError as error:  # raised if the disk is full, for example
            raise OSError(None, str(error), str(folder)) from error


def _load(file: Path, found_by: str) -> Arrays | None:
    """Returns the dataset in a cache file; None if the file is missing or damaged, or does not hold the hash `found_by`."""
    try:
        with safe_open(file, framework="numpy") as opened:
            about: Mapping[str, str] = opened.metadata() or {}
            if about.get("found_by") != found_by:
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = {name: json.loads(about[name]) for name in FACTS}
        known: dict[str, Any] = {name: tuple(fact) if isinstance(fact, list) else fact for name, fact in facts.items()}
        arrays = Arrays(**tensors, **known)
        return arrays if content_key(vars(arrays)) == arrays.key else None
    except (FileNotFoundError, SafetensorError, TypeError, KeyError, ValueError):
        return None


def _save(file: Path, arrays: Arrays, found_by: str) -> None:
    tensors = {name: np.ascontiguousarray(value) for name, value in vars(arrays).items() if isinstance(value, np.ndarray)}
    facts = {name: json.dumps(getattr(arrays, name)) for name in FACTS}
    with _writing(file.parent), replacing(file) as temporary:
        save_file(tensors, temporary, {"found_by": found_by, **facts})
