"""The gradient of a layer's inputs in training on a CPU: back through BatchNorm, weights and activation, by numba's kernels.

y is the output of a BatchNorm; the sums are its input. The *gradient at y* and the *gradient at the sums* are the derivatives
of the loss with respect to y and to the sums, float32 [rows, width].
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu.forward import Norm, Sums, share_rows
from bnn_exp.bits.cpu.kernels import batch_norm
from bnn_exp.bits.cpu.kernels.batch_norm import CHUNK
from bnn_exp.bits.cpu.ways import Product

_CACHED = 2**18  # the most numbers of a gradient (1 MiB) that stay in the cache from one kernel to the next


class _OnRows:
    """An operation that changes a gradient in place. It can be applied to some rows at a time."""

    def rows(self, grad: np.ndarray, begin: int, end: int) -> None:
        """Changes rows `begin` to `end` of `grad`, float32 [rows, width], in place. The range consists of whole chunks."""
        raise NotImplementedError

    def all(self, grad: Tensor) -> None:
        """Changes all rows of `grad`, float32 [rows, width], in place; torch's threads share the rows."""
        array = grad.numpy()
        share_rows(lambda begin, end: self.rows(array, begin, end), len(array))


@dataclass(frozen=True)
class Totals:
    """Two sums over the rows of a batch: Σ grad and Σ grad · (number − mean), float64 [width].

    `grad` is the gradient at the output y of a BatchNorm, 0 outside the window. `number` is the input of the BatchNorm.
    """

    grads: Tensor
    products: Tensor


class Window(_OnRows):
    """The backward pass of an activation: the gradient at y passes where |y| ≤ `window` and becomes 0 elsewhere."""

    def __init__(self, sums: Sums, norm: Norm, window: float):
        chunks, width = -(-len(sums.z) // CHUNK), sums.z.shape[1]
        self.partial = np.empty((2, chunks, width), np.float32)
        self.arguments = *sums.arrays, *norm.arrays, norm.mean.numpy(), np.float32(window)

    def rows(self, grad: np.ndarray, begin: int, end: int) -> None:
        batch_norm.pass_window(grad, *self.arguments, begin, end, *self.partial)

    @property
    def totals(self) -> Totals:
        """The two sums of `Totals` over all rows. They are complete once the method `rows` has run for every row."""
        return Totals(*torch.from_numpy(self.partial.sum(1, dtype=np.float64)))


class Centering(_OnRows):
    """The backward pass of a BatchNorm: the gradient at y becomes that at the sums (Ioffe & Szegedy 2015, section 3)."""

    def __init__(self, sums: Sums, norm: Norm, totals: Totals):
        factor, rows = norm.scale, len(sums.z)
        slope, offset = torch.zeros_like(factor), torch.zeros_like(factor)
        if norm.batch:  # mean and variance come from this batch, so the gradient passes through them too
            slope = factor * (totals.products * norm.inverse.double().square() / rows).float()
            offset = factor * (totals.grads / rows).float()
        self.arguments = *sums.arrays, *(vector.numpy() for vector in (norm.mean, factor, slope, offset))

    def rows(self, grad: np.ndarray, begin: int, end: int) -> None:
        batch_norm.center(grad, *self.arguments, begin, end)


def go_back(grad: Tensor, center: Centering, product: Product, window: Window) -> Tensor:
    """Turns `grad`, the gradient at a layer's y, into the gradient at its sums, in place, and goes on to the layer below.

    Args:
        center: the backward pass of the layer's BatchNorm.
        product: the product with the layer's weights.
        window: the backward pass of the activation of the layer below.

    Returns:
        The gradient at the y of the layer below, float32 [rows, width].
    """
    below = torch.empty(len(grad), product.width)
    here, there = grad.numpy(), below.numpy()
    step = CHUNK * max(1, _CACHED // (CHUNK * product.width))

    def of_rows(first: int, last: int) -> None:
        for begin in range(first, last, step):
            end = min(begin + step, last)
            center.rows(here, begin, end)
            product.rows(grad, begin, end, below)
            window.rows(there, begin, end)

    if product.shares_rows:
        share_rows(of_rows, len(grad))
    else:
        center.all(grad)
        product.rows(grad, 0, len(grad), below)
        window.all(below)
    return below
