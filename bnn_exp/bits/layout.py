"""The order in memory of packed weights. Tiles [groups, bytes, 64] hold equal numbers on every device, with other strides."""

from torch import Tensor

from bnn_exp.nn import device

_ALIGNED = 64  # on a GPU, a row of weights takes a multiple of this number of bytes


def laid_out(tiles: Tensor) -> Tensor:
    """Returns equal tiles whose memory has the order that kernels read: whole tiles on a CPU, rows of outputs on a GPU."""
    return tiles.contiguous() if device.on_host(tiles) else in_rows(tiles)


def in_rows(tiles: Tensor) -> Tensor:
    """Returns equal tiles in the order of rows: the bytes of an output stand side by side, then zeros up to a multiple of 64.

    Tiles in this order are returned as they are.
    """
    groups, columns, lanes = tiles.shape
    row = columns + -columns % _ALIGNED
    if tiles.stride() == (lanes * row, 1, row) and tiles.data_ptr() % 16 == 0:
        return tiles
    rows = tiles.new_zeros(groups, lanes, row)
    rows[..., :columns] = tiles.transpose(1, 2)
    return rows[..., :columns].transpose(1, 2)
