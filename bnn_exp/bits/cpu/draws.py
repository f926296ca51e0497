"""The random numbers of `bnn_exp.bits.philox` on a CPU, by numba's kernels."""

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.kernels import draws
from bnn_exp.bits.cpu.kernels.draws import BLOCK


def uniform(count: int, key: int, step: Tensor, draw: int) -> Tensor:
    """Returns `count` random numbers in [0, 1), float32; see `bnn_exp.bits.philox.philox_uniform`."""
    out = torch.empty(count)
    draws.uniform(key, int(step), draw, out.numpy())
    return out


def below(count: int, key: int, step: Tensor, draw: int, share: float) -> Tensor:
    """Returns the places from 0 to count − 1 whose random number is below `share`, int64 and sorted."""
    deviation = (count * share * (1 - share)) ** 0.5 if 0 < share < 1 else 0
    enough = int(count * share + 6 * deviation) + 2 * BLOCK  # too short once in 10⁹ calls
    for length in (enough, count + BLOCK):
        out = np.empty(length, np.int64)
        found = draws.below(key, int(step), draw, count, np.float32(share), out)
        if found >= 0:
            return torch.from_numpy(out[:found])
    raise AssertionError("a vector of all places is long enough")
