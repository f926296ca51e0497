"""`metrics.jsonl`: a line an epoch, on disk as soon as the epoch is done."""

import json
from pathlib import Path

from bnn_exp.records.files import replacing


def append(file: Path, metrics: dict) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps(metrics) + "\n")


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


def keep(file: Path, epochs: int) -> list[dict]:
    """Cut the file back to its first `epochs` epochs, and return them."""
    kept = read(file)[:epochs]
    with replacing(file) as temporary:
        temporary.write_text("".join(json.dumps(metrics) + "\n" for metrics in kept))
    return kept
