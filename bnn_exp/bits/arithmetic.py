"""The interface of the arithmetic with which the packed engine trains an MLP of bits, and the choice of it by the device.

`bnn_exp.bits.cpu.passes.OnCPU` computes on a CPU with numba's kernels, and
`bnn_exp.bits.cuda.training.OnGPU` on a GPU with Triton's.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from bnn_exp.bits import device
from bnn_exp.bits.factors import Factors
from bnn_exp.bits.packing import PackedBits


class Sums(Protocol):
    """The sums of a layer for a batch: a dataclass of tensors and numbers."""

    @property
    def z(self) -> Tensor:
        """The sums in units of their own, [rows, width]; width is the number of neurons, filled up to a multiple of 64."""


class Norm(Protocol):
    """A BatchNorm in one step: a dataclass of tensors, float32 [width], that turn the sums into y."""


class Backward(Protocol):
    """A backward pass through a network. It stands at the BatchNorm of one layer, first at that of the last layer.

    `of_weight` and `of_bias` are the gradients of this BatchNorm's weight and bias, float32 [width].
    """

    of_weight: Tensor
    of_bias: Tensor

    def at_sums(self) -> Tensor:
        """Returns the gradient at the sums of the current layer, [rows, width], and ends the pass."""

    def go_on(self, to_inputs: Any, sums: Any, norm: Any, window: float) -> Tensor:
        """Goes on to the BatchNorm of the layer below.

        Args:
            to_inputs: the product of the current layer, from `Arithmetic.to_inputs`.
            sums, norm: those of the layer below.
            window: the gradient passes the activation of the layer below where |y| ≤ `window`.

        Returns:
            The gradient at the sums of the layer that the pass leaves, [rows, width].
        """


class Arithmetic(Protocol):
    """The operations of a training on packed bits.

    The value of a bit 1 is 1; the value of a bit 0 is `zero`, 0 or −1. `sums` and `norm` are what the same arithmetic returned
    before. y is the output of a BatchNorm.
    """

    def sums_of_bits(self, x: Tensor, weights: PackedBits, zero: float) -> Sums:
        """Returns the sums x Vᵀ of packed bits x, uint8 [rows, bytes], and the values V of `weights`."""

    def sums_of_pixels(self, x: Tensor, weights: PackedBits, zero: float) -> Sums:
        """Returns the sums x Vᵀ / 255 of pixels x, uint8 [rows, inputs], and the values V of `weights`."""

    def normalization(self, norm: nn.BatchNorm1d, sums: Any) -> Norm:
        """Returns what `norm` does with this batch; in training it updates the running statistics."""

    def activations(self, sums: Any, norm: Any) -> Tensor:
        """Returns the packed bits 1[y ≥ 0], uint8 [rows, width / 8]."""

    def normalized(self, sums: Any, norm: Any) -> Tensor:
        """Returns y, float32 [rows, width]."""

    def kept(self, x: Tensor) -> Tensor:
        """Returns a layer's packed bits x in the form in which the backward pass takes them."""

    def backward(self, grad: Tensor, sums: Any, norm: Any) -> Backward:
        """Begins a backward pass; `grad` is the gradient at the last layer's y, float32 [rows, classes]."""

    def to_inputs(self, layer: int, weights: PackedBits, width: int, zero: float) -> Any:
        """Returns the product that takes the gradient at the sums of layer number `layer` to its inputs, `width` columns."""

    def bit_factors(self, layer: int, grad: Tensor, x: Tensor, neurons: int, inputs: int, zero: float) -> Factors:
        """Returns the weight gradient [neurons, inputs] of layer number `layer`, whose inputs are bits.

        Args:
            grad: the gradient at the layer's sums, [rows, width].
            x: the layer's inputs, as `kept` returned them.
        """

    def pixel_factors(self, grad: Tensor, pixels: Tensor, neurons: int) -> Factors:
        """Returns the weight gradient [neurons, inputs] of the first layer, whose inputs are pixels, uint8 [rows, inputs]."""


def arithmetic(weights: Tensor, bf16: bool, gradient_bits: int | None, key: Callable[[int, int], int]) -> Arithmetic:
    """Returns the arithmetic for the device on which a network's `weights` are.

    Args:
        bf16: on a GPU, whether products round gradients to bfloat16.
        gradient_bits: on a CPU, the bits to which products round gradients, 4 or 8; None for no rounding.
        key: returns the random key, ≥ 0, of a rounding in the current step, for a layer's number and 0 (the gradient of its
            inputs) or 1 (the gradient of its weights). Its low 32 bits count.
    """
    if not device.on_host(weights):
        from bnn_exp.bits.cuda.training import OnGPU

        return OnGPU(bf16)
    from bnn_exp.bits.cpu.passes import OnCPU
    from bnn_exp.bits.cpu.rounding import Rounding

    if gradient_bits is None:
        return OnCPU()
    return OnCPU(lambda layer, product: Rounding(gradient_bits, key(layer, product) & 0xFFFFFFFF))
