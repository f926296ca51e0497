"""Random numbers of a run that depend on (seed, purpose, step, …) alone, never on a stream that other code may advance.

A resumed run, another engine and every rank therefore draw the same numbers at the same step. `bnn_exp.bits.philox` draws the
numbers of weights on a GPU. Only the first weights of a network come from elsewhere: from `torch.manual_seed`.
"""

import math
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """The purpose of random numbers: the first integer of a key, followed by the integers that the comments name.

    Different purposes never share a key.
    """

    MASK = 1  # the key: MASK, seed, step, number of the tensor
    PERMUTATION = 2  # the key: PERMUTATION, seed, epoch
    AUGMENTATION = 3  # the key: AUGMENTATION, seed, epoch, batch
    ROUNDING = 4  # the key: ROUNDING, seed, step, number of the layer, 0 (gradient of its inputs) or 1 (of its weights)


def generator(device: torch.device | str, purpose: Purpose, *key: int) -> torch.Generator:
    """Returns a generator that depends on `purpose` and the integers of `key`, each ≥ 0, alone.

    NumPy's SeedSequence mixes them into the generator's seed.
    """
    return torch.Generator(device).manual_seed(number(purpose, *key) >> 1)


def number(purpose: Purpose, *key: int) -> int:
    """Returns 64 random bits that depend on `purpose` and the integers of `key`, each ≥ 0, alone."""
    return int(np.random.SeedSequence((purpose, *key)).generate_state(1, np.uint64)[0])


def bernoulli_positions(n: int, p: float, generator: torch.Generator) -> Tensor:
    """Returns the positions where n independent Bernoulli(p) draws are 1: sorted, int64, on the generator's device.

    The gaps between positions are Geometric(p). Drawing the gaps instead of n bits takes O(n·p) work (Devroye 1986, Non-Uniform
    Random Variate Generation, ch. X.2).
    """
    if p <= 0:
        return torch.empty(0, dtype=torch.int64, device=generator.device)
    if p >= 1:
        return torch.arange(n, device=generator.device)
    enough = int(n * p + 6 * math.sqrt(n * p * (1 - p)) + 16)  # 6 σ above the mean: once in 10⁹ calls the loop runs twice
    last, rounds = -1, []
    while last < n:
        gaps = torch.empty(enough, dtype=torch.int64, device=generator.device).geometric_(p, generator=generator)
        rounds.append(last + gaps.cumsum(0))
        last = int(rounds[-1][-1])
    positions = torch.cat(rounds)
    return positions[positions < n]
