"""Checkpoints: the complete state of a training in one file, which loads with `weights_only=True`."""

import os
import traceback
from pathlib import Path
from typing import Any

import torch

from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing

FORMAT = "bnn_exp checkpoint 1"
MORE = 2**20  # bytes of the test write after a failed `torch.save`


def save(file: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain values) to `file` atomically.

    Raises:
        NotWritten: the file can't be written, for example because the disk is full. An earlier checkpoint stays as it was.
    """
    with replacing(file) as temporary:
        try:
            torch.save({"format": FORMAT, **state}, temporary)
        except RuntimeError as error:  # torch's writer hides the reason of the failure
            traceback.clear_frames(error.__traceback__)  # the frames keep the file open, and so its disk space
            _write_more(temporary)
            raise


def _write_more(file: Path) -> None:
    """Appends some bytes to `file`. The operating system then raises an OSError that names the reason of the failure."""
    with file.open("ab", buffering=0) as stream:
        for _ in range(2):  # the first write may be cut short without an error
            stream.write(bytes(MORE))
        os.fsync(stream.fileno())


def load(file: Path) -> dict[str, Any]:
    """Returns the state that `save` wrote to `file`, with all tensors on the CPU.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint\nallowed: the directory of a run that has begun to train")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises exceptions of a dozen types
        raise UserError(f"{file}: not a readable checkpoint; truncated, damaged or not a checkpoint at all") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{file}: not a checkpoint of this program\nallowed: a file that says it is a {FORMAT!r}")
    return state
