"""Writing files so that they are there whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bnn_exp.errors import UserError


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path to write to; when the block ends well it becomes `file`, else it is removed.

    The file gets the permissions that the process gives to new files, whatever the writer gave it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode & 0o777
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(permissions)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write `text` to `file` atomically, in UTF-8; what UTF-8 does not have, such as lone surrogates, as escapes."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(file: Path, value: Any) -> None:
    """Write `value` to `file` atomically, as JSON."""
    write_text(file, json.dumps(value, indent=2, default=str) + "\n")


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Within the block no other process may be in such a block for the same directory.

    Raises:
        UserError: one is.
    """
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{directory}: another process is running in it\nallowed: wait for it, or end it first") from error
    try:
        yield
    finally:
        (directory / ".lock").unlink(missing_ok=True)
        lock.release()


@contextmanager
def writable(folder: Path, allowed: str = "hydra.run.dir=FOLDER where you may write") -> Iterator[None]:
    """Within the block the file system's errors are the user's to mend: no permission, no space, a file in the way.

    Raises:
        UserError: `folder` can't be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or folder}: can't be written ({error.strerror})\nallowed: {allowed}") from error
