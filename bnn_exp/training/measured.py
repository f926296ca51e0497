"""The measured speeds of both engines on this machine, which `benchmark=machine` keeps and `engine=auto` reads.

Imports no torch.
"""

import json
from math import hypot, log2
from pathlib import Path
from typing import Any

from bnn_exp.config.paths import cache_root


def place(device: str) -> Path:
    """Returns the file that keeps the speeds on devices of type `device`, such as `cuda`."""
    return cache_root() / "engines" / f"{device}.json"


def faster(device: str, hidden: int, batch: int) -> str | None:
    """Returns the engine that was faster in the measurement nearest to these sizes; None if nothing was measured.

    The distance of two sizes is the difference of their logarithms.

    Args:
        device: the type of the device, such as `cuda`.
        hidden, batch: the hidden size of the network, and the batch size.
    """
    try:
        steps: list[dict[str, Any]] = json.loads(place(device).read_text())["steps"]
        nearest = min(steps, key=lambda step: hypot(log2(step["hidden"] / hidden), log2(step["batch"] / batch)))
        return min(("dense", "packed"), key=lambda engine: nearest[engine])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no file, or not one of `benchmark=machine`
