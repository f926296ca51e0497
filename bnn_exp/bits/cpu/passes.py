"""The arithmetic of an MLP of bits in training on a CPU (`bnn_exp.bits.arithmetic.Arithmetic`), gathered from this folder."""

from collections.abc import Callable
from math import inf

from torch import Tensor

from bnn_exp.bits.cpu import backward, forward, rounding
from bnn_exp.bits.cpu.backward import Centering, ToInputs, Window
from bnn_exp.bits.cpu.factors import BitFactors, PixelFactors
from bnn_exp.bits.cpu.forward import Norm, Sums
from bnn_exp.bits.cpu.layout import columns_of, filled
from bnn_exp.bits.cpu.rounding import RoundedBitFactors, RoundedPixelFactors, Rounding
from bnn_exp.bits.packing import PackedBits


class OnCPU:
    """The arithmetic of a training on a CPU; see `bnn_exp.bits.arithmetic.Arithmetic`.

    Args:
        rounding: returns how to round the gradient at the sums of a layer, for the gradient of its inputs (0) or of its weights
            (1). With None gradients are not rounded.
    """

    sums_of_bits = staticmethod(forward.sums_of_bits)
    sums_of_pixels = staticmethod(forward.sums_of_pixels)
    normalization = staticmethod(forward.normalization)
    activations = staticmethod(forward.activations)
    normalized = staticmethod(forward.normalized)
    kept = staticmethod(columns_of)

    def __init__(self, rounding: Callable[[int, int], Rounding] | None = None):
        self.rounding = rounding

    def backward(self, grad: Tensor, sums: Sums, norm: Norm) -> "Backward":
        """Begins a backward pass; `grad` is the gradient at the last layer's y, float32 [rows, classes]."""
        return Backward(grad, sums, norm)

    def to_inputs(self, layer: int, weights: PackedBits, width: int, zero: float) -> ToInputs:
        """Returns the product that takes the gradient at a layer's sums to its inputs, `width` columns."""
        if self.rounding is None:
            return backward.to_inputs(weights, width, zero)
        return rounding.to_inputs(weights, width, zero, self.rounding(layer, 0))

    def bit_factors(self, layer: int, grad: Tensor, x: Tensor, neurons: int, inputs: int, zero: float) -> BitFactors:
        """Returns the weight gradient of a layer on bits, of which `x` is what `kept` returned."""
        if self.rounding is None:
            return BitFactors(grad, x, neurons, inputs, zero)
        return RoundedBitFactors(grad, x, neurons, inputs, zero, self.rounding(layer, 1))

    def pixel_factors(self, grad: Tensor, pixels: Tensor, neurons: int) -> PixelFactors:
        """Returns the weight gradient of the first layer."""
        if self.rounding is None:
            return PixelFactors(grad, pixels, neurons)
        return RoundedPixelFactors(grad, pixels, neurons, self.rounding(0, 1))


class Backward:
    """A backward pass through a network, from its last layer to its first; see `bnn_exp.bits.arithmetic.Backward`."""

    def __init__(self, grad: Tensor, sums: Sums, norm: Norm):
        self.grad = filled(grad, sums.z.shape[1])
        window = Window(sums, norm, inf)
        window.all(self.grad)
        self._enter(sums, norm, window)

    def _enter(self, sums: Sums, norm: Norm, window: Window) -> None:
        totals = window.totals
        self.center = Centering(sums, norm, totals)
        self.of_weight, self.of_bias = (totals.products * norm.inverse).float(), totals.grads.float()

    def at_sums(self) -> Tensor:
        """Returns the gradient at the sums of the current layer, float32 [rows, width], and ends the pass."""
        self.center.all(self.grad)
        return self.grad

    def go_on(self, to_inputs: ToInputs, sums: Sums, norm: Norm, window: float) -> Tensor:
        """Goes on to the y of the layer below. Returns the gradient at the sums of the layer that it leaves."""
        passing, at_sums = Window(sums, norm, window), self.grad
        self.grad = backward.go_back(at_sums, self.center, to_inputs, passing)
        self._enter(sums, norm, passing)
        return at_sums
