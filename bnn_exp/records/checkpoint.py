"""Checkpoints: all that a run needs to go on, in a file that loads with `weights_only=True`."""

import os
import traceback
from pathlib import Path
from typing import Any

import torch

from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing

FORMAT = "bnn_exp checkpoint 1"
MORE = 2**20  # bytes


def save(file: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) atomically.

    Raises:
        NotWritten: the disk is full, say; an earlier checkpoint of that name is as it was.
    """
    with replacing(file) as temporary:
        try:
            torch.save({"format": FORMAT, **state}, temporary)
        except RuntimeError as error:  # torch's writer does not name the reason
            traceback.clear_frames(error.__traceback__)  # which hold the file, and its space, open
            _write_more(temporary)
            raise


def _write_more(file: Path) -> None:
    """Add a little to `file`, so that the operating system says why no more can be written, by an OSError."""
    with file.open("ab", buffering=0) as stream:
        for _ in range(2):  # the first write may be cut short without an error
            stream.write(bytes(MORE))
        os.fsync(stream.fileno())


def load(file: Path) -> dict[str, Any]:
    """Returns the state that `save` wrote, on the CPU.

    Raises:
        UserError: there is no such file, it is damaged, or something else wrote it.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint\nallowed: the directory of a run that has begun to train")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load says what it dislikes by a dozen types
        raise UserError(f"{file}: not a readable checkpoint; truncated, damaged or not a checkpoint at all") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{file}: not a checkpoint of this program\nallowed: a file that says it is a {FORMAT!r}")
    return state
