"""The kernel that keeps the packed bits of latent weights up to date."""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import flip_different, ones


@kernel
def follow(x, threshold, bits, first, last):
    """Updates the bytes from `first` to `last` of packed bits to 1[x > threshold]. Returns the number of bits that changed.

    Args:
        x: float32 [count].
        threshold: float32.
        bits: uint8 [⌈count / 8⌉].
    """
    flips, whole = 0, len(x) // 8
    numbers, bytes_ = np.intp(x.ctypes.data), np.intp(bits.ctypes.data)
    for j in range(first, min(last, whole)):
        flips += flip_different(bytes_ + j, numbers + 32 * j, threshold)
    if last > whole:
        byte = 0
        for i in range(8 * whole, len(x)):
            byte |= np.intp(x[i] > threshold) << (i & 7)
        flips += ones(byte ^ np.intp(bits[whole]))
        bits[whole] = byte
    return flips
