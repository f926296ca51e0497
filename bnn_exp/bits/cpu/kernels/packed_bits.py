"""Kernels that count, read and flip bits in packed rows."""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import byte_at, ones


@kernel
def negated_sums(packed, columns, out):
    """Writes −Σ v of the values v = −1 and 1 of each row of packed bits [rows, columns] to `out`, float32 [≥ rows].

    Args:
        packed: the bits, uint8 [rows, bytes]. The rest of `out` becomes 0.
    """
    out[len(packed) :] = 0
    start, row = np.intp(packed.ctypes.data), np.intp(packed.shape[1])
    for r in range(len(packed)):
        total = 0
        for j in range(row):
            total += ones(byte_at(start + r * row + j))
        out[r] = columns - 2 * total


@kernel
def bits_at(packed, inputs, positions, found):
    """Copies the bits at flat `positions`, int64, of bits [rows, inputs] to `found`, float32.

    Args:
        packed: the bits, uint8 [rows, bytes].
    """
    for i in range(len(positions)):
        row, k = positions[i] // inputs, positions[i] % inputs
        found[i] = packed[row, k >> 3] >> (k & 7) & 1


@kernel
def flip_at(packed, inputs, positions):
    """Flips the bits at flat `positions` of bits [rows, inputs], in place. Positions are int64 and distinct.

    Args:
        packed: the bits, uint8 [rows, bytes].
    """
    for i in range(len(positions)):
        row, k = positions[i] // inputs, positions[i] % inputs
        packed[row, k >> 3] ^= np.uint8(1 << (k & 7))
