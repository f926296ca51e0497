"""`metrics.jsonl`: a line an epoch, on disk as soon as the epoch is done."""

import errno
import json
import os
from pathlib import Path

from bnn_exp.records.files import replacing, writing_to


def append(file: Path, metrics: dict) -> None:
    """Add a line.

    Raises:
        NotWritten: it can't be written whole; then nothing of it is there.
    """
    with writing_to(file.parent), file.open("ab", buffering=0) as stream:
        before, line = stream.tell(), f"{json.dumps(metrics)}\n".encode()
        try:
            if stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(before)
            raise


def read(file: Path) -> list[dict]:
    """The epochs so far; a last line that a killed process left unfinished does not count."""
    if not file.exists():
        return []
    epochs = []
    for line in file.read_text().splitlines():
        try:
            epochs.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return epochs


def keep(file: Path, epochs: int, newest: dict | None = None) -> list[dict]:
    """Cut the file back to its first `epochs` epochs, and return them.

    The `newest` is added if it is missing: it comes from the checkpoint, and a kill may have fallen between the two files.
    """
    kept = read(file)[:epochs]
    if newest is not None and newest["epoch"] == len(kept) + 1 == epochs:
        kept.append(newest)
    with replacing(file) as temporary:
        temporary.write_text("".join(json.dumps(metrics) + "\n" for metrics in kept))
    return kept
