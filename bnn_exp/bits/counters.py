"""Numbers of a few bits, several to a byte: the counters of the rule `counter`."""

from functools import reduce
from operator import or_

import torch
from torch import Tensor


def stored_width(n: int) -> int:
    """Returns the number of bits of a byte, 1, 2, 4 or 8, in which `pack` stores a number of n bits."""
    return 1 << (n - 1).bit_length()


def pack(numbers: Tensor, n: int) -> Tensor:
    """Packs numbers of n bits, uint8 [count], several to a byte, the lowest bits first.

    Returns:
        uint8 [⌈count · `stored_width(n)` / 8⌉]; `numbers` itself if each takes a byte.
    """
    width = stored_width(n)
    if width == 8:
        return numbers
    columns = torch.nn.functional.pad(numbers, (0, -len(numbers) % (8 // width))).view(-1, 8 // width).unbind(1)
    return reduce(or_, (column << (width * j) for j, column in enumerate(columns)))


def unpack(packed: Tensor, n: int, count: int) -> Tensor:
    """Returns the `count` numbers of n bits each that `pack` packed: uint8 [count]."""
    width = stored_width(n)
    columns = [(packed >> shift) & (2**width - 1) for shift in range(0, 8, width)]
    return torch.stack(columns, 1).flatten()[:count]
