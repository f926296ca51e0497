"""Changes in place: flips bits, stores new values of a state, and tells if a tensor was written to."""

import torch
from torch import Tensor


def flip_bits(w: Tensor, which: Tensor) -> Tensor:
    """Flips bits of `w` in place and returns the number of flips, a scalar tensor.

    Args:
        which: bool of the shape of `w`, or flat positions, int64, each once.
    """
    if which.dtype == torch.bool:
        w.logical_xor_(which)
        return which.count_nonzero()
    flat = w.view(-1)
    flat[which] = 1 - flat[which]
    return torch.tensor(len(which), device=w.device)


def keep_addresses(state: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """Copies new values of a state into the tensors of the old values, because a replayed CUDA graph reads these tensors."""
    for name, old in before.items():
        if isinstance(new := state.get(name), Tensor) and new is not old and new.shape == old.shape:
            state[name] = old.copy_(new)


def written(p: Tensor) -> tuple[int, int]:
    """Returns two numbers that change when a tensor is written to: its version and its address."""
    return p._version, p.data_ptr()
