"""Max-pooling of images [batch, height, width, channels], given as flat arrays of float32 or bfloat16 (as uint16).

The number of channels is a multiple of 16. A kernel takes the rows `begin` to `end` of the batch · out_height rows of windows.
"""

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.kernels.vectors_16 import zero_floats, zero_ints
from bnn_exp.bits.cpu.kernels.vectors_of_arrays import (
    bytes_at,
    greater,
    greater_place,
    numbers_at,
    set_bytes,
    set_numbers,
    where_place,
)


@kernel
def set_largest(x, shape, size, begin, end, out, places):
    """Sets the largest number of each window, and its place size · row + column. `shape` is that of the images."""
    _, height, width, channels = shape
    down, across, row = height // size, width // size, width * channels
    for r in range(begin, end):
        corner = (r // down * height + r % down * size) * row
        for c in range(across):
            for n in range(0, channels, WIDTH):
                first, to = corner + c * size * channels + n, (r * across + c) * channels + n
                largest, place, i, at = numbers_at(x, first), zero_ints(), 0, first
                for _ in range(size):
                    for _ in range(size):
                        number = numbers_at(x, at)
                        place = greater_place(number, largest, place, i)
                        largest = greater(number, largest)
                        i, at = i + 1, at + channels
                    at += row - size * channels
                set_numbers(out, to, largest)
                set_bytes(places, to, place)


@kernel
def spread(grad, places, shape, size, begin, end, out):
    """Sets the gradient of each window at the place of its largest number, and 0 elsewhere, also outside of all windows."""
    _, height, width, channels = shape
    down, across, row = height // size, width // size, width * channels
    for r in range(begin, end):
        corner = (r // down * height + r % down * size) * row
        for c in range(across):
            for n in range(0, channels, WIDTH):
                first, at = corner + c * size * channels + n, (r * across + c) * channels + n
                g, place = numbers_at(grad, at), bytes_at(places, at)
                i, to = 0, first
                for _ in range(size):
                    for _ in range(size):
                        set_numbers(out, to, where_place(g, zero_floats(), place, i))
                        i, to = i + 1, to + channels
                    to += row - size * channels
        for i in range(size):
            for j in range(corner + i * row + across * size * channels, corner + (i + 1) * row, WIDTH):
                set_numbers(out, j, zero_floats())
        if r % down == down - 1:
            for j in range(corner + size * row, (r // down + 1) * height * row, WIDTH):
                set_numbers(out, j, zero_floats())
