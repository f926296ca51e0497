"""The gradient of a layer's inputs in training on a CPU: back through BatchNorm, weights and activation, by numba's kernels.

y is the output of a BatchNorm; the sums are its input. The *gradient at y* and the *gradient at the sums* are the derivatives
of the loss with respect to y and to the sums, float32 [rows, width].
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.cpu import processor
from bnn_exp.bits.cpu.forward import Norm, Sums, share_rows
from bnn_exp.bits.cpu.kernels import batch_norm, input_gradient
from bnn_exp.bits.cpu.kernels.batch_norm import CHUNK
from bnn_exp.bits.cpu.layout import columns_of, factors_of, filled, up_to, words_of

if TYPE_CHECKING:
    from bnn_exp.bits.packing import PackedBits  # at run time this import would be circular

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


class ToInputs(Protocol):
    """The product grad · V of the gradient at a layer's sums and the values V of its weights: the gradient at its inputs."""

    width: int  # columns of the result
    shares_rows: bool  # True if several threads may call `rows`, False if `rows` itself uses all threads

    def rows(self, grad: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Computes the gradient at the inputs in rows `begin` to `end` − 1 of `out`, float32 [rows, width], from these rows of
        `grad`, the gradient at the sums, float32."""


class ByProduct:
    """The product grad · V as torch's float32 matrix product; see `ToInputs`."""

    shares_rows = False

    def __init__(self, weights: "PackedBits", width: int, zero: float):
        self.width, self.v = width, filled(weights.values(zero), width)

    def rows(self, grad: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Computes the gradient at the inputs in rows `begin` to `end` − 1 of `out`, float32 [rows, width], from these rows of
        `grad`, the gradient at the sums, float32."""
        torch.mm(grad[begin:end, : len(self.v)], self.v, out=out[begin:end])


class ByLookUp:
    """The product grad · V in float32 by look-ups (`kernels.input_gradient`), on a processor with AVX-512; see `ToInputs`.

    The look-ups take a third of the time of torch's float32 product on a Zen 4. Torch's bf16 product takes longer, and rounds
    the gradient to 8 bits.
    """

    shares_rows = True

    def __init__(self, weights: "PackedBits", width: int, zero: float):
        self.width, self.neurons = width, up_to(len(weights.packed), 32)
        self.words = words_of(columns_of(weights.packed)[:, : self.neurons // 8], width)
        self.factors = factors_of(zero)

    def rows(self, grad: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Computes the gradient at the inputs in rows `begin` to `end` − 1 of `out`, float32 [rows, width], from these rows of
        `grad`, the gradient at the sums, float32."""
        look_up(grad[:, : self.neurons], self.words, self.factors, out, begin, end)


def to_inputs(weights: "PackedBits", width: int, zero: float) -> ToInputs:
    """Returns the `ToInputs` that is fastest on this processor, for a result of `width` columns; a bit 0 counts as `zero`."""
    return ByLookUp(weights, width, zero) if processor.AVX512 else ByProduct(weights, width, zero)


def look_up(grad: Tensor, words: Tensor, factors: Tensor, out: Tensor, begin: int, end: int) -> None:
    """Computes rows `begin` to `end` of `out` = grad · V by look-ups (`kernels.input_gradient`). `grad` and `out` are float32.

    Args:
        words: the bits of V, as `words_of` arranges them.
        factors: the values of these bits, from `factors_of`.
    """
    source, target = (t.data_ptr() + 4 * t.stride(0) * begin for t in (grad, out))
    sizes = grad.stride(0), end - begin, grad.shape[1]
    input_gradient.input_gradient(source, *sizes, words.data_ptr(), out.shape[1], factors.data_ptr(), target)


def go_back(grad: Tensor, center: Centering, to_inputs: ToInputs, window: Window) -> Tensor:
    """Turns `grad`, the gradient at a layer's y, into the gradient at its sums, in place, and goes on to the layer below.

    Args:
        center: the backward pass of the layer's BatchNorm.
        to_inputs: the product with the layer's weights.
        window: the backward pass of the activation of the layer below.

    Returns:
        The gradient at the y of the layer below, float32 [rows, width].
    """
    below = torch.empty(len(grad), to_inputs.width)
    here, there = grad.numpy(), below.numpy()
    step = CHUNK * max(1, _CACHED // (CHUNK * to_inputs.width))

    def of_rows(first: int, last: int) -> None:
        for begin in range(first, last, step):
            end = min(begin + step, last)
            center.rows(here, begin, end)
            to_inputs.rows(grad, begin, end, below)
            window.rows(there, begin, end)

    if to_inputs.shares_rows:
        share_rows(of_rows, len(grad))
    else:
        center.all(grad)
        to_inputs.rows(grad, 0, len(grad), below)
        window.all(below)
    return below
