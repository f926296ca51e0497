"""Kernels that measure a gradient: sums of its rows, from which σ follows, and sums of squares of its rows and columns.

Sums are float64. A row is added in an order that no other row and no thread changes.

Arguments of both kernels:
    g, stride, half: the address of the gradients, the numbers from a row to the next, and True for bfloat16, False for float32.
    columns: the gradients in a row.
    begin, end: the range of rows.
"""

import numpy as np

from bnn_exp.bits.cpu.kernels.compiler import kernel
from bnn_exp.bits.cpu.kernels.draws import BLOCK
from bnn_exp.bits.cpu.kernels.rules import read_gradients


def _adding(function):
    """Returns a kernel that may add the numbers of a row in any order."""
    return kernel(function, fastmath={"reassoc"})


@_adding
def moments(g, stride, half, columns, begin, end, sums):
    """Writes Σ g and Σ g² of each row to `sums`, float64 [rows, 2]."""
    scratch = np.empty(BLOCK, np.float32)
    for r in range(begin, end):
        total, squares = 0.0, 0.0
        for c in range(0, columns, BLOCK):
            n = min(BLOCK, columns - c)
            read_gradients(g + (r * stride + c) * (2 if half else 4), half, n, scratch)
            for i in range(n):
                x = np.float64(scratch[i])
                total += x
                squares += x * x
        sums[r, 0], sums[r, 1] = total, squares


@_adding
def squares(g, stride, half, columns, begin, end, of_rows, of_columns):
    """Writes Σ g² of each row to `of_rows`, float64 [rows], and of each column in these rows to `of_columns`.

    Args:
        of_columns: float64 [columns]; or an empty vector, which receives nothing.
    """
    scratch = np.empty(BLOCK, np.float32)
    for c in range(len(of_columns)):
        of_columns[c] = 0
    for r in range(begin, end):
        total = 0.0
        for c in range(0, columns, BLOCK):
            n = min(BLOCK, columns - c)
            read_gradients(g + (r * stride + c) * (2 if half else 4), half, n, scratch)
            for i in range(n):
                x = np.float64(scratch[i])
                total += x * x
            if len(of_columns):
                some = of_columns[c : c + n]
                for i in range(n):
                    x = np.float64(scratch[i])
                    some[i] += x * x
        of_rows[r] = total
