"""The records of the layers of a packed CNN, and the padded pictures that the layers read.

A record describes a layer by 64-bit integers. The names below are their places in the record, in bytes. The address of a tensor
that a layer lacks is 0. A padded picture is the picture that a layer reads, with a border of `size // 2` positions.
"""

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.llvm import byte_at, clear, copy, word_at

KIND, HEIGHT, WIDE, CHANNELS, SIZE, POOL, OUTPUTS, ZERO = range(0, 64, 8)  # WIDE: the width of a picture
TILES, COLUMNS, GROUPS = range(64, 88, 8)  # COLUMNS: bytes of one output's weights
PADDING = 88  # of a layer that reads codes
BIAS, MULTIPLIER, LEVELS = range(96, 120, 8)  # of a layer that gives codes
THRESHOLDS, CLASSES, INVERTED = range(120, 144, 8)  # of a layer that gives bits; CLASSES: border classes of a row, 1 or SIZE
RECORD = 144
CODES, BITS, AVERAGE = range(3)  # kinds: a convolution that reads codes or bits, or a mean over all positions

SLACK = 64  # bytes that a kernel may read after the last picture


@kernel
def position_bytes(record):
    """Returns the bytes of one position of a layer's input."""
    channels = word_at(record + CHANNELS)
    return (channels + 7) // 8 if word_at(record + KIND) == BITS else channels


@kernel
def result_bytes(record):
    """Returns the bytes of one position of a layer's result: codes, or packed bits if the layer has thresholds."""
    outputs = word_at(record + OUTPUTS)
    return (outputs + 7) // 8 if word_at(record + THRESHOLDS) else outputs


@kernel
def padded_row(record):
    """Returns the bytes of one row of a layer's padded pictures."""
    return (word_at(record + WIDE) + word_at(record + SIZE) // 2 * 2) * position_bytes(record)


@kernel
def padded_bytes(record):
    """Returns the bytes of one padded picture that a layer reads."""
    return (word_at(record + HEIGHT) + word_at(record + SIZE) // 2 * 2) * padded_row(record)


@kernel
def inside(record):
    """Returns the bytes from the start of a layer's padded picture to the picture's first position."""
    return word_at(record + SIZE) // 2 * (padded_row(record) + position_bytes(record))


@kernel
def _set_outside(record, at, count, zeros):
    """Sets `count` positions outside the picture, the first at address `at`; to 0 if `zeros` is True."""
    each, padding = position_bytes(record), word_at(record + PADDING)
    if zeros:
        clear(at, count * each)
    else:
        for i in range(count):
            copy(at + i * each, padding, each)


@kernel
def set_border(record, picture):
    """Sets the positions around the picture in the padded picture at address `picture`."""
    height, width, half = word_at(record + HEIGHT), word_at(record + WIDE), word_at(record + SIZE) // 2
    padding, zeros = word_at(record + PADDING), True
    for i in range(position_bytes(record) if padding and half else 0):
        zeros = zeros and byte_at(padding + i) == 0
    around, row = half * (width + 2 * half) + half, padded_row(record)  # from the first position to the picture
    if half == 0:
        return
    _set_outside(record, picture, around, zeros)
    for y in range(half + 1, half + height):  # the end of a row and the start of the next one lie side by side
        _set_outside(record, picture + y * row - half * position_bytes(record), 2 * half, zeros)
    _set_outside(record, picture + (half + height) * row - half * position_bytes(record), around, zeros)


@kernel
def copy_inside(record, x, picture):
    """Copies the picture at x, without padding, into the padded picture at address `picture`."""
    row = word_at(record + WIDE) * position_bytes(record)
    first = picture + inside(record)
    for y in range(word_at(record + HEIGHT)):
        copy(first + y * padded_row(record), x + y * row, row)
