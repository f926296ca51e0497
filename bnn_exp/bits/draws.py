"""Random numbers of a run that depend on (seed, purpose, step, …) alone, never on a stream that other code may advance.

A resumed run, another engine and every rank therefore draw the same numbers at the same step. `bnn_exp.bits.philox` draws the
numbers of weights. Only the first weights of a network come from elsewhere: from `torch.manual_seed`.
"""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """The first integer of every random key. The comment of each member names the integers that follow it in the key.

    Different purposes never share a key.
    """

    MASK = 1  # the key: MASK, seed, number of the tensor; of a generator for torch: MASK, seed, step, number of the tensor
    PERMUTATION = 2  # the key: PERMUTATION, seed, epoch
    AUGMENTATION = 3  # the key: AUGMENTATION, seed, epoch, batch
    ROUNDING = 4  # the key: ROUNDING, seed, step, number of the layer, 0 (gradient of its inputs) or 1 (of its weights)


def generator(device: torch.device | str, purpose: Purpose, *key: int) -> torch.Generator:
    """Returns a generator that depends on `purpose` and the integers of `key`, each ≥ 0, alone.

    NumPy's SeedSequence mixes these integers into the generator's seed.
    """
    return torch.Generator(device).manual_seed(number(purpose, *key) >> 1)


def number(purpose: Purpose, *key: int) -> int:
    """Returns 64 random bits that depend on `purpose` and the integers of `key`, each ≥ 0, alone."""
    return int(np.random.SeedSequence((purpose, *key)).generate_state(1, np.uint64)[0])
