"""The kernels of every rule that trains bits: one pass over gradient, state and bits of a tensor.

A tensor has rows of `columns` bits. The *place* of a bit is its number in the tensor; random numbers and states go by place. A
kernel works on blocks of up to BLOCK bits of a row. It copies the numbers of a block to vectors in the cache, calls the rule
for each bit, and writes flips and state back.
"""

from types import FunctionType

import numpy as np
from numba import njit

from bnn_exp.bits import scalar_rules
from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.draws import BLOCK, fractions
from bnn_exp.bits.cpu.kernels.llvm import flip_marked, float_at, half_at, set_float, set_signs
from bnn_exp.bits.cpu.kernels.scalars import OPERATIONS

# Vectors of the scratch memory: gradients, bits as ±1, two states, sizes, flips as 0 and 1, random numbers.
SIGNS, _FIRST, _SECOND, SIZES, FLIPS, _DRAWS = (BLOCK * i for i in range(1, 7))
SCRATCH = 7 * BLOCK + 16


@kernel
def _copy(numbers, out, count):
    """Copies `count` numbers of a vector, float32."""
    for i in range(count):
        out[i] = numbers[i]


@kernel
def read_gradients(g, half, count, scratch):
    """Copies `count` gradients, float32 or (if `half`) bfloat16, from address `g` to the scratch memory."""
    if half:
        for i in range(count):
            scratch[i] = half_at(g + 2 * i)
    else:
        for i in range(count):
            scratch[i] = float_at(g + 4 * i)


@kernel
def read_signs(w, packed, count, scratch):
    """Copies `count` bits, packed or float32, from address `w` to the scratch memory, as ±1."""
    if packed:
        signs = np.intp(scratch.ctypes.data) + 4 * SIGNS
        for i in range(0, count, 8):
            set_signs(signs + 4 * i, w + (i >> 3))
    else:
        for i in range(count):
            scratch[SIGNS + i] = np.float32(2) * float_at(w + 4 * i) - np.float32(1)


@kernel
def read_sizes(size, of_columns, count, scratch):
    """Writes the sizes of `count` gradients to the scratch memory: `size`, times the numbers of `of_columns` if any."""
    if len(of_columns):
        for i in range(count):
            scratch[SIZES + i] = size * of_columns[i]
    else:
        for i in range(count):
            scratch[SIZES + i] = size


@kernel
def flip_block(w, packed, count, scratch):
    """Flips those of the `count` bits from address `w` on that the scratch memory marks. Returns the number of flips."""
    flips = 0
    if packed:
        for i in range(8):
            scratch[FLIPS + count + i] = np.float32(0)
        marks = np.intp(scratch.ctypes.data) + 4 * FLIPS
        for i in range(0, count, 8):
            flips += flip_marked(w + (i >> 3), marks + 4 * i)
    else:
        for i in range(count):
            which = scratch[FLIPS + i]
            set_float(w + 4 * i, abs(float_at(w + 4 * i) - which))
        for i in range(count):
            flips += np.int32(scratch[FLIPS + i])
    return flips


@kernel
def read_counters(counters, width, place, count, scratch):
    """Copies `count` counters of `width` bits, 2, 4 or 8, from `place` on to the first state in the scratch memory."""
    first = place * width
    some, skipped, mask = counters[first >> 3 :], first & 7, (1 << width) - 1
    if width == 8:
        for i in range(count):
            scratch[_FIRST + i] = np.float32(some[i])
    else:
        for i in range(count):
            at = skipped + i * width
            scratch[_FIRST + i] = np.float32(np.int32(some[at >> 3]) >> (at & 7) & mask)


@kernel
def write_counters(counters, width, place, count, scratch):
    """Stores `count` counters from the first state in the scratch memory, where `read_counters` copies them to."""
    first = place * width
    some, at, shift = counters[first >> 3 :], 0, first & 7
    if width == 8:
        for i in range(count):
            some[i] = np.uint8(np.int32(scratch[_FIRST + i]))
        return
    byte = np.int32(some[0]) & ((1 << shift) - 1)
    for i in range(count):
        byte |= np.int32(scratch[_FIRST + i]) << shift
        shift += width
        if shift == 8:
            some[at] = np.uint8(byte)
            at, byte, shift = at + 1, 0, 0
    if shift:
        some[at] = np.uint8(np.int32(some[at]) >> shift << shift | byte)


def _pass(w, row, packed, g, stride, half, columns, begin, end, a, b, counters, width, of_rows, of_columns, numbers, random):
    """Does a step of the rule RULE on the bits in rows `begin` to `end`. Returns the number of flips.

    Args:
        w, row, packed: the address of the bits, the bytes of a row, and True if bits are packed, False if they are float32.
        g, stride, half: the address of the gradients, the numbers from a row to the next, and True for bfloat16.
        a, b: the state, float32 vectors with one number for each bit, or empty.
        counters, width: the state as counters of `width` bits, or an empty vector and 0.
        of_rows, of_columns: the size of a gradient is the product of its row's and its column's number, float32. A vector
            `of_rows` of one number holds for all rows. An empty vector `of_columns` stands for ones.
        numbers: the strength and two more hyperparameters, float32.
        random: key and step of the random numbers, int64; or empty.
    """
    scratch, flips, size = np.empty(SCRATCH, np.float32), 0, of_rows[0]
    strength, y, z = numbers[0], numbers[1], numbers[2]
    for r in range(begin, end):
        if len(of_rows) > 1:
            size = of_rows[r]
        for c in range(0, columns, BLOCK):
            n, place = min(BLOCK, columns - c), r * columns + c
            bits = w + r * row + (c >> 3 if packed else 4 * c)
            read_gradients(g + (r * stride + c) * (2 if half else 4), half, n, scratch)
            read_signs(bits, packed, n, scratch)
            if len(a):
                _copy(a[place:], scratch[_FIRST:], n)
            elif width:
                read_counters(counters, width, place, n, scratch)
            else:
                for i in range(n):
                    scratch[_FIRST + i] = np.float32(0.5) * (scratch[SIGNS + i] + np.float32(1))
            if len(b):
                _copy(b[place:], scratch[_SECOND:], n)
            read_sizes(size, of_columns[c:], n, scratch)
            if len(random):
                fractions(random[0], random[1], 0, place, n, scratch[_DRAWS:])
            first = _DRAWS + place % 4
            for i in range(n):
                which, one, two = RULE(  # noqa: F821 (`_pass_of` defines it)
                    scratch[i],
                    scratch[SIGNS + i],
                    scratch[_FIRST + i],
                    scratch[_SECOND + i],
                    scratch[first + i],
                    scratch[SIZES + i],
                    strength,
                    y,
                    z,
                )
                scratch[FLIPS + i], scratch[_FIRST + i], scratch[_SECOND + i] = np.float32(which), one, two
            if len(a):
                _copy(scratch[_FIRST:], a[place:], n)
            elif width:
                write_counters(counters, width, place, n, scratch)
            if len(b):
                _copy(scratch[_SECOND:], b[place:], n)
            flips += flip_block(bits, packed, n, scratch)
    return flips


def _scalar(function):
    return njit(error_model="numpy")(function)


SCALARS = scalar_rules.compiled(_scalar, OPERATIONS)


def _pass_of(name):
    """Returns the kernel `_pass` for the rule `name`. Numba's cache tells the kernels apart by their qualified names."""
    function = FunctionType(_pass.__code__, {**globals(), "RULE": SCALARS[name]}, name)
    function.__qualname__, function.__doc__ = f"pass_of_{name}", _pass.__doc__
    return kernel(function)


PASSES = {name: _pass_of(name) for name in scalar_rules.RULES}
