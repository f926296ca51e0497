"""BatchNorm and its activation on rows of channels: the elements and the sums of the operators of `bnn_exp.nn.batch_norm`.

z, the outputs and the gradients are flat arrays of rows · channels numbers, float32 or bfloat16 (as uint16), where the number
of channels is a multiple of 16. Vectors are float32 [channels]. y = z · scale + shift is computed in each kernel anew.

A kernel takes the rows `begin` to `end`. Sums are taken over chunks of CHUNK rows, so the division of the work among threads
changes no result. A chunk stays in the cache while a kernel reads it several times, 16 channels each time.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import WIDTH
from bnn_exp.bits.cpu.kernels.vectors_16 import minus, plus, repeated, times_plus, zero_floats
from bnn_exp.bits.cpu.kernels.vectors_of_arrays import at_least, by_sign, numbers_at, set_numbers, times, where_between

CHUNK = 512


@kernel
def chunk_moments(z, channels, begin, end, means, squares):
    """Sets, for each chunk of rows, the mean of each channel and Σ (number − mean)²: float32, flat [chunks, channels].

    The sums are of d = number − the first number of the chunk, in one pass: Σ (number − mean)² = Σ d² − (Σ d)²/rows.
    """
    for first in range(begin, end, CHUNK):
        last, to = min(first + CHUNK, end), first // CHUNK * channels
        inverse = repeated(np.float32(1) / np.float32(last - first))
        for n in range(0, channels, WIDTH):
            start, stop = first * channels + n, last * channels + n
            whole = start + (last - first) // 4 * 4 * channels
            origin = numbers_at(z, start)
            a, b, c, d = zero_floats(), zero_floats(), zero_floats(), zero_floats()
            e, f, g, h = zero_floats(), zero_floats(), zero_floats(), zero_floats()
            for i in range(start, whole, 4 * channels):  # four sums, because the processor adds several numbers at a time
                p, q = minus(numbers_at(z, i), origin), minus(numbers_at(z, i + channels), origin)
                r, s = minus(numbers_at(z, i + 2 * channels), origin), minus(numbers_at(z, i + 3 * channels), origin)
                a, b, c, d = plus(a, p), plus(b, q), plus(c, r), plus(d, s)
                e, f, g, h = times_plus(p, p, e), times_plus(q, q, f), times_plus(r, r, g), times_plus(s, s, h)
            for i in range(whole, stop, channels):
                p = minus(numbers_at(z, i), origin)
                a, e = plus(a, p), times_plus(p, p, e)
            total, square = plus(plus(a, b), plus(c, d)), plus(plus(e, f), plus(g, h))
            mean = times(total, inverse)
            set_numbers(means, to + n, plus(origin, mean))
            set_numbers(squares, to + n, minus(square, times(total, mean)))


@kernel
def join_moments(means, squares, rows, mean, variance):
    """Sets the mean and the biased variance of `rows` rows from the results of `chunk_moments`, each [chunks, channels].

    Source: Chan et al. 1979, Updating formulae and a pairwise algorithm for computing sample variances.
    """
    chunks, channels = means.shape
    for n in range(channels):
        total = square = 0.0
        for i in range(chunks):
            total += means[i, n] * min(CHUNK, rows - i * CHUNK)
        center = total / rows
        for i in range(chunks):
            square += squares[i, n] + min(CHUNK, rows - i * CHUNK) * (means[i, n] - center) ** 2
        mean[n], variance[n] = center, square / rows


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
