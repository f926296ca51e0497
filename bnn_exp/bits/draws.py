"""All randomness of a run: drawn from (seed, what for, when), never from a stream that something else may advance.

So a run that is resumed, or computed by another engine, or on another rank, draws the same numbers at the same step.
"""

import math
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What numbers are drawn for. No two purposes share a key, whatever the integers that follow."""

    MASK = 1  # seed, step, tensor
    PERMUTATION = 2  # seed, epoch
    AUGMENTATION = 3  # seed, epoch, batch
    ROUNDING = 4  # seed, step, layer, which of its two gradients


def generator(device: torch.device | str, purpose: Purpose, *key: int) -> torch.Generator:
    """A generator that depends on its purpose and the integers of `key` alone, each ≥ 0 (mixed by NumPy's SeedSequence)."""
    return torch.Generator(device).manual_seed(number(purpose, *key) >> 1)


def number(purpose: Purpose, *key: int) -> int:
    """64 random bits that depend on the same alone."""
    return int(np.random.SeedSequence((purpose, *key)).generate_state(1, np.uint64)[0])


def bernoulli_positions(n: int, p: float, generator: torch.Generator) -> Tensor:
    """Where n independent Bernoulli(p) draws are 1: sorted positions, int64, on the generator's device.

    Draws the gaps, which are Geometric(p), instead of the n bits, so that the work is O(n·p)
    (Devroye 1986, Non-Uniform Random Variate Generation, ch. X.2).
    """
    if p <= 0:
        return torch.empty(0, dtype=torch.int64, device=generator.device)
    if p >= 1:
        return torch.arange(n, device=generator.device)
    enough = int(n * p + 6 * math.sqrt(n * p * (1 - p)) + 16)  # a second round is needed once in 10⁹ calls
    last, rounds = -1, []
    while last < n:
        gaps = torch.empty(enough, dtype=torch.int64, device=generator.device).geometric_(p, generator=generator)
        rounds.append(last + gaps.cumsum(0))
        last = int(rounds[-1][-1])
    positions = torch.cat(rounds)
    return positions[positions < n]
