"""BatchNorm, its activation and max-pooling in one pass in each direction: the operators of `bnn_exp.nn.pooled_norm`.

Images z [batch, height, width, channels], outputs and gradients are flat arrays of float32 or bfloat16 (as uint16), where the
number of channels is a multiple of 16. Vectors are float32 [channels]. `shape` is that of z.

A kernel takes the images `begin` to `end`, and 16 channels of an image at a time, which stay in the cache. The loops over a
window count by 1: a range with another step begins with a division.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.kernels.vectors_16 import minus, plus, repeated, times_plus, zero_floats, zero_ints
from bnn_exp.bits.cpu.kernels.vectors_of_arrays import (
    at_least,
    bytes_at,
    greater,
    greater_place,
    numbers_at,
    place_above,
    set_bytes,
    set_numbers,
    times,
    where_place,
)


@kernel
def set_pooled(z, shape, size, scale, shift, begin, end, lowest, out, places):
    """Sets max(y, lowest) for the largest y = z · scale + shift of each window, and the place of this y in the window.

    The place is size · row + column, or size² where y ≤ lowest.
    """
    _, height, width, channels = shape
    down, across, row, least = height // size, width // size, width * channels, repeated(np.float32(lowest))
    for image in range(begin, end):
        for n in range(0, channels, WIDTH):
            a, b, to = numbers_at(scale, n), numbers_at(shift, n), image * down * across * channels + n
            for r in range(down):
                for c in range(across):
                    first = (image * height + r * size) * row + c * size * channels + n
                    largest, place, i, at = times_plus(numbers_at(z, first), a, b), zero_ints(), 0, first
                    for _ in range(size):
                        for _ in range(size):
                            y = times_plus(numbers_at(z, at), a, b)
                            place = greater_place(y, largest, place, i)
                            largest = greater(y, largest)
                            i, at = i + 1, at + channels
                        at += row - size * channels
                    set_numbers(out, to, at_least(largest, least))
                    set_bytes(places, to, place_above(largest, least, place, size * size))
                    to += channels


@kernel
def image_sums(grad, places, z, shape, size, mean, begin, end, totals, products):
    """Sets, for each image, Σ g and Σ g · (z − mean) of each channel: float32, flat [batch, channels].

    g is the gradient of each window at its place.
    """
    _, height, width, channels = shape
    down, across, row = height // size, width // size, width * channels
    for image in range(begin, end):
        for n in range(0, channels, WIDTH):
            center, at = numbers_at(mean, n), image * down * across * channels + n
            total, product = zero_floats(), zero_floats()
            for r in range(down):
                for c in range(across):
                    k = (image * height + r * size) * row + c * size * channels + n
                    place, number, i = bytes_at(places, at), center, 0
                    for _ in range(size):
                        for _ in range(size):
                            number = where_place(numbers_at(z, k), number, place, i)
                            i, k = i + 1, k + channels
                        k += row - size * channels
                    g = where_place(zero_floats(), numbers_at(grad, at), place, i)
                    total, product = plus(total, g), times_plus(g, minus(number, center), product)
                    at += channels
            set_numbers(totals, image * channels + n, total)
            set_numbers(products, image * channels + n, product)


@kernel
def set_image_gradients(grad, places, z, shape, size, scale, mean, slope, offset, begin, end, out):
    """Sets g · scale − (z − mean) · slope − offset, with g as in `image_sums`; g is 0 outside of all windows."""
    _, height, width, channels = shape
    down, across, row = height // size, width // size, width * channels
    for image in range(begin, end):
        for n in range(0, channels, WIDTH):
            a, center, c, d = numbers_at(scale, n), numbers_at(mean, n), numbers_at(slope, n), numbers_at(offset, n)
            for r in range(height):
                start = (image * height + r) * row + n
                inside = across * size * channels if r < down * size else 0
                at = (image * down + r // size) * across * channels + n
                for window in range(start, start + inside, size * channels):
                    all_of_window, place = numbers_at(grad, at), bytes_at(places, at)
                    for i in range(size):
                        g = times(where_place(all_of_window, zero_floats(), place, r % size * size + i), a)
                        rest = times_plus(minus(numbers_at(z, window + i * channels), center), c, d)
                        set_numbers(out, window + i * channels, minus(g, rest))
                    at += channels
                for i in range(start + inside, start + row, channels):
                    rest = times_plus(minus(numbers_at(z, i), center), c, d)
                    set_numbers(out, i, minus(zero_floats(), rest))
