"""BatchNorm and its activation on rows of channels: the elements and the sums of the operators of `bnn_exp.nn.batch_norm`.

z, the outputs and the gradients are flat arrays of rows · channels numbers, float32 or bfloat16 (as uint16), where the number
of channels is a multiple of 16. Vectors are float32 [channels]. y = z · scale + shift is computed in each kernel anew.

A kernel takes the rows `begin` to `end`. Sums are taken over chunks of CHUNK rows, so the division of the work among threads
changes no result. A chunk stays in the cache while a kernel reads it several times, 16 channels each time.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.kernels.vectors_16 import minus, over, plus, repeated, times_plus, zero_floats
from bnn_exp.bits.cpu.kernels.vectors_of_arrays import at_least, by_sign, numbers_at, set_numbers, times, where_between

CHUNK = 256


@kernel
def chunk_moments(z, channels, begin, end, means, squares):
    """Sets, for each chunk of rows, the mean of each channel and Σ (number − mean)²: float32, flat [chunks, channels]."""
    for first in range(begin, end, CHUNK):
        last, to = min(first + CHUNK, end), first // CHUNK * channels
        for n in range(0, channels, WIDTH):
            start, stop, step = first * channels + n, last * channels + n, 2 * channels
            a, b = zero_floats(), zero_floats()
            for i in range(start, stop - channels, step):
                a, b = plus(a, numbers_at(z, i)), plus(b, numbers_at(z, i + channels))
            if (last - first) % 2:
                a = plus(a, numbers_at(z, stop - channels))
            mean = over(plus(a, b), repeated(np.float32(last - first)))
            set_numbers(means, to + n, mean)
            a, b = zero_floats(), zero_floats()
            for i in range(start, stop - channels, step):
                c, d = minus(numbers_at(z, i), mean), minus(numbers_at(z, i + channels), mean)
                a, b = times_plus(c, c, a), times_plus(d, d, b)
            if (last - first) % 2:
                c = minus(numbers_at(z, stop - channels), mean)
                a = times_plus(c, c, a)
            set_numbers(squares, to + n, plus(a, b))


@kernel
def set_activations(z, channels, scale, shift, begin, end, lowest, out):
    """Sets max(y, lowest): ReLU with lowest = 0, the identity with −∞."""
    lowest = repeated(np.float32(lowest))
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        for n in range(0, channels, WIDTH):
            a, b = numbers_at(scale, n), numbers_at(shift, n)
            for i in range(first * channels + n, last * channels + n, channels):
                set_numbers(out, i, at_least(times_plus(numbers_at(z, i), a, b), lowest))


@kernel
def set_values(z, channels, scale, shift, begin, end, low, high, out):
    """Sets `high` where y ≥ 0, else `low`."""
    low, high = repeated(np.float32(low)), repeated(np.float32(high))
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        for n in range(0, channels, WIDTH):
            a, b = numbers_at(scale, n), numbers_at(shift, n)
            for i in range(first * channels + n, last * channels + n, channels):
                set_numbers(out, i, by_sign(times_plus(numbers_at(z, i), a, b), low, high))


@kernel
def chunk_sums(grad, z, channels, scale, shift, mean, begin, end, least, most, totals, products):
    """Sets, for each chunk of rows, Σ g and Σ g · (z − mean) of each channel: float32, flat [chunks, channels].

    g is the gradient where least ≤ y ≤ most, else 0.
    """
    least, most = repeated(np.float32(least)), repeated(np.float32(most))
    for first in range(begin, end, CHUNK):
        last, to = min(first + CHUNK, end), first // CHUNK * channels
        for n in range(0, channels, WIDTH):
            a, b, center = numbers_at(scale, n), numbers_at(shift, n), numbers_at(mean, n)
            total, product = zero_floats(), zero_floats()
            for i in range(first * channels + n, last * channels + n, channels):
                number = numbers_at(z, i)
                g = where_between(numbers_at(grad, i), times_plus(number, a, b), least, most)
                total, product = plus(total, g), times_plus(g, minus(number, center), product)
            set_numbers(totals, to + n, total)
            set_numbers(products, to + n, product)


@kernel
def set_gradients(grad, z, channels, scale, shift, mean, slope, offset, begin, end, least, most, out):
    """Sets g · scale − (z − mean) · slope − offset, with g as in `chunk_sums`."""
    least, most = repeated(np.float32(least)), repeated(np.float32(most))
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        for n in range(0, channels, WIDTH):
            a, b, center = numbers_at(scale, n), numbers_at(shift, n), numbers_at(mean, n)
            c, d = numbers_at(slope, n), numbers_at(offset, n)
            for i in range(first * channels + n, last * channels + n, channels):
                number = numbers_at(z, i)
                g = where_between(numbers_at(grad, i), times_plus(number, a, b), least, most)
                rest = times_plus(minus(number, center), c, d)
                set_numbers(out, i, minus(times(g, a), rest))
