"""Checks of the tensors that kernels get: a kernel sees only addresses.

A check takes a microsecond; a layer of 1024² bits takes two.
"""

import torch
from torch import Tensor

from bnn_exp.bits.reference import LANES

_UINT8, _INT32 = torch.uint8, torch.int32


def sizes(x: Tensor, tiles: Tensor, kind: str) -> tuple[int, int, int, int]:
    """Returns the sizes of an input x and its weights: rows and columns of x, number of tiles, bytes of an output's weights.

    Args:
        kind: the kind of numbers in x: "bit", "pixel" or "real".

    Raises:
        ValueError: x and tiles do not fit together.
    """
    try:
        (rows, row), (groups, columns, lanes) = x.shape, tiles.shape
        fits = row >= columns if kind == "bit" else (row + 7) // 8 == columns
        typed = x.dtype is _UINT8 if kind != "real" else x.is_floating_point()
        if fits and typed and groups and lanes == LANES and tiles.dtype is _UINT8 and x.get_device() == tiles.get_device():
            return rows, row, groups, columns
    except ValueError:  # x or tiles has too many or too few dimensions
        pass
    raise ValueError(
        f"{kind}s {_words(x)} × tiles {_words(tiles)}: must be {'real' if kind == 'real' else 'uint8'} "
        f"[batch, {'≥ bytes' if kind == 'bit' else '7 less than 8 · bytes, or up to 8 · bytes'}] × "
        f"uint8 [⌈outputs/{LANES}⌉, bytes, {LANES}] on one device"
    )


def check_outputs(outputs: int, groups: int) -> None:
    """Raises ValueError unless `groups` tiles hold `outputs` outputs, with a part of the last tile empty at most."""
    if (outputs + LANES - 1) // LANES != groups:
        raise ValueError(f"outputs={outputs}: {groups} tiles have {LANES * (groups - 1) + 1} to {LANES * groups}")


def check_thresholds(thresholds: Tensor, inverted: Tensor, tiles: Tensor) -> None:
    """Raises ValueError unless `thresholds` and `inverted` have an entry for each output of the tiles, on their device."""
    groups, device = tiles.shape[0], tiles.get_device()
    typed = thresholds.dtype is _INT32 and inverted.dtype is _UINT8
    shaped = thresholds.shape == (LANES * groups,) and inverted.shape == (LANES // 8 * groups,)
    if not (typed and shaped and thresholds.get_device() == device and inverted.get_device() == device):
        raise ValueError(
            f"thresholds {_words(thresholds)} and inverted {_words(inverted)}: must be "
            f"int32 [{LANES * groups}] and uint8 [{LANES // 8 * groups}] on {tiles.device}"
        )


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
