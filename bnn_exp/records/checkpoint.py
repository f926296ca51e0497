"""Checkpoints: all that a run needs to go on, in a file that loads with `weights_only=True`."""

from pathlib import Path
from typing import Any

import torch

from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing

FORMAT = "bnn_exp checkpoint 1"


def save(file: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) atomically."""
    with replacing(file) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


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
