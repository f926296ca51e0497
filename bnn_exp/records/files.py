"""Writes files atomically: a file is complete or absent, even after a crash or on a full disk."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bnn_exp.errors import NotWritten, UserError
from bnn_exp.records.formatting import bytes_in_words

TEMPORARY = re.compile(r"\..+\.\d+\.part")  # names of the temporary files of `replacing`


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Context manager: yields the path of a temporary file, to which the body writes. If the body succeeds, the temporary file
    becomes `file`; otherwise the temporary file is removed.

    The file gets the permissions that the process gives to new files.

    Raises:
        NotWritten: the folder can't be made or the file can't be written. An earlier `file` stays as it was.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    with writing_to(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            permissions = temporary.stat().st_mode & 0o777
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(permissions)
            temporary.replace(file)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Context manager: an OSError in the body becomes a NotWritten that names `folder`, the reason and the free space."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            free = f"; {bytes_in_words(shutil.disk_usage(folder).free)} free there"
            raise NotWritten(f"{folder}: can't be written ({error.strerror or error}{free})") from error
        raise NotWritten(f"{folder}: can't be written ({error.strerror or error})") from error


def check_writable(folder: Path, key: str) -> None:
    """Checks that the command can create or fill `folder`, which the setting `key` names.

    Raises:
        UserError: `folder` or a folder above is a file, or the user may not write to the folder.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UserError(f"{key}={folder}: {there} is a file\nallowed: {key}=FOLDER where you may write")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder}: {there} can't be written\nallowed: {key}=FOLDER where you may write")


def remove_temporaries(folder: Path) -> None:
    """Removes temporary files that a killed process left in `folder`. No other process may be writing to `folder`."""
    for file in folder.glob(".*.part"):
        if TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)


def file_sha256(file: Path) -> str:
    """Returns the SHA-256 of all bytes of a file, as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def existing(directory: Path, names: Iterable[str]) -> list[str]:
    """Returns the `names` of files and folders that exist in `directory`."""
    return [name for name in names if (directory / name).exists()]


def write_text(file: Path, text: str) -> None:
    """Writes `text` to `file` atomically, in UTF-8. Characters that UTF-8 can't encode, such as lone surrogates, become
    escapes."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(file: Path, value: Any) -> None:
    """Writes `value` to `file` atomically, as JSON."""
    write_text(file, json.dumps(value, indent=2, default=str) + "\n")


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Context manager: while the body runs, locks `directory` against other processes that use this context manager.

    Raises:
        UserError: another process holds the lock.
        NotWritten: the directory can't be written.
    """
    lock = FileLock(directory / ".lock")
    with writing_to(directory):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{directory}: another process is running in it\nallowed: wait for it, or end it first") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (directory / ".lock").unlink(missing_ok=True)
        lock.release()


@contextmanager
def writable(folder: Path, allowed: str = "hydra.run.dir=FOLDER where you may write") -> Iterator[None]:
    """Context manager: if the body fails to write, the exception becomes a UserError, because the user can repair the cause.

    Args:
        folder: the folder to which the body writes.
        allowed: the second line of the message, without `allowed: `.

    Raises:
        UserError: the body fails to write.
    """
    try:
        yield
    except NotWritten as error:
        raise UserError(f"{error}\nallowed: {allowed}") from error
    except OSError as error:
        raise UserError(f"{error.filename or folder}: can't be written ({error.strerror})\nallowed: {allowed}") from error
