"""The gradient of a layer's inputs in training on a CPU: back through BatchNorm, weights and activation, by numba's kernels.

y is the output of a BatchNorm; the sums are its input. The *gradient at y* and the *gradient at the sums* are the derivatives
of the loss with respect to y and to the sums, float32 [rows, width].
"""

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


class Window(_OnRows):
    """The backward pass of an activation: the gradient at y passes where |y| ≤ `window` and becomes 0 elsewhere."""

    def __init__(self, sums: Sums, norm: Norm, window: float):
        chunks, width = -(-len(sums.z) // CHUNK), sums.z.shape[1]
        self.partial = np.empty((2, chunks, width), np.float32)
        self.arguments = *sums.arrays, *norm.arrays, norm.mean.numpy(), np.float32(window)

    def rows(self, grad: np.ndarray, begin: int, end: int) -> None:
        batch_norm.pass_window(grad, *self.arguments, begin, end, *self.partial)


class Centering(_OnRows):
    """The backward pass of a BatchNorm: the gradient at y becomes that at the sums (Ioffe & Szegedy 2015, section 3).

    `of_weight` and `of_bias` are the gradients of weight and bias of the BatchNorm, float32 [width].

    Args:
        window: the activation that follows the BatchNorm. Its method `rows` has run for every row.
    """

    def __init__(self, sums: Sums, norm: Norm, window: Window):
        vectors = torch.empty(4, sums.z.shape[1])
        slope, offset, _, _ = arrays = vectors.numpy()
        _, _, self.of_weight, self.of_bias = vectors
        factor = norm.scale.numpy()
        batch_norm.gradient_vectors(*window.partial, len(sums.z), norm.inverse.numpy(), factor, norm.batch, *arrays)
        self.arguments = *sums.arrays, norm.mean.numpy(), factor, slope, offset

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
