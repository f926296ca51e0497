"""Reads and writes `metrics.jsonl`, which holds one line per epoch, on disk as soon as the epoch ends."""

import errno
import json
import os
from pathlib import Path

from bnn_exp.records.files import replacing, writing_to


def append(file: Path, metrics: dict) -> None:
    """Appends the metrics of an epoch to `file` as one line.

    Raises:
        NotWritten: the line can't be written completely. The file stays as it was.
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
    """Returns the metrics of all epochs in `file`; none if the file is missing. Ignores an incomplete last line."""
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
    """Shortens `file` to its first `epochs` epochs and returns the metrics of these epochs.

    Args:
        newest: the metrics of the last epoch, from the checkpoint. They are appended if the file lacks them: the process may
            have been killed after it wrote the checkpoint and before it wrote the line.
    """
    kept = read(file)[:epochs]
    if newest is not None and newest["epoch"] == len(kept) + 1 == epochs:
        kept.append(newest)
    with replacing(file) as temporary:
        temporary.write_text("".join(json.dumps(metrics) + "\n" for metrics in kept))
    return kept
