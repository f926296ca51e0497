"""Checkpoints: all that a run needs to go on, in a file that loads with `weights_only=True`."""

import errno
import os
from pathlib import Path
from typing import Any

import torch

from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing

FORMAT = "bnn_exp checkpoint 1"
WRITER = "inline_container"  # in the message of torch's errors about files
PROBE = 2**20  # bytes


def save(file: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) atomically.

    Raises:
        NotWritten: the disk is full, say; an earlier checkpoint of that name is as it was.
    """
    with replacing(file) as temporary:
        try:
            torch.save({"format": FORMAT, **state}, temporary)
        except RuntimeError as error:
            if WRITER in str(error):
                raise _reason(temporary) from error
            raise


def _reason(temporary: Path) -> OSError:
    """The error of the operating system behind torch's, which does not name it: found by writing a little more."""
    try:
        with temporary.open("ab", buffering=0) as stream:
            stream.write(bytes(PROBE))
            stream.write(bytes(PROBE))  # the first may have been cut short, without an error
            os.fsync(stream.fileno())
    except OSError as error:
        return error
    return OSError(errno.EIO, os.strerror(errno.EIO))


def load(file: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

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
