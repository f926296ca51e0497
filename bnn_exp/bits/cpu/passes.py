"""The operations with which the packed engine trains on a CPU, gathered from this folder."""

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from torch import Tensor, nn

from bnn_exp.bits.cpu import backward, forward
from bnn_exp.bits.cpu.backward import Centering, Window
from bnn_exp.bits.cpu.factors import BitFactors, PixelFactors
from bnn_exp.bits.cpu.forward import Norm, Sums
from bnn_exp.bits.cpu.layout import columns_of, filled
from bnn_exp.bits.cpu.ways import InFloat32, Product, Way

if TYPE_CHECKING:
    from bnn_exp.bits.packing import PackedBits  # at run time this import would be circular


class OnCPU:
    """The operations of a training on packed bits, on a CPU. `bnn_exp.bits.cuda.training.OnGPU` has the same methods.

    The value of a bit 1 is 1; the value of a bit 0 is `zero`, 0 or −1. y is the output of a BatchNorm.

    Args:
        way: returns the way to multiply the gradient at a layer's sums. Its arguments are the number of the layer, and 0 for
            the gradient of the layer's inputs or 1 for the gradient of its weights.
        lean: True if the gradient of a layer's weights should be computed in blocks of neurons.
    """

    sums_of_bits = staticmethod(forward.sums_of_bits)
    sums_of_pixels = staticmethod(forward.sums_of_pixels)

    def __init__(self, way: Callable[[int, int], Way] = lambda layer, gradient: InFloat32(), lean: bool = False):
        self.way, self.lean = way, lean

    @staticmethod
    def pixels(x: Tensor) -> Tensor:
        """Returns pixels, uint8 [rows, inputs], unchanged: products on a CPU take them in this form."""
        return x

    @staticmethod
    def activated(norm: nn.BatchNorm1d, sums: Sums, zero: float) -> tuple[Norm, Tensor]:
        """Returns the `Norm` of a layer, and the packed bits 1[y ≥ 0] of the BatchNorm's output y."""
        found = forward.normalization(norm, sums)
        return found, forward.activations(sums, found)

    @staticmethod
    def normalized(norm: nn.BatchNorm1d, sums: Sums) -> tuple[Norm, Tensor]:
        """Returns the `Norm` of a layer, and the output y of its BatchNorm, float32 [rows, neurons]."""
        found = forward.normalization(norm, sums)
        return found, forward.normalized(sums, found)[:, : norm.num_features]

    @staticmethod
    def kept(x: Tensor, last: bool) -> Tensor:
        """Returns the bits x of a layer's inputs in the form that the backward pass takes."""
        return columns_of(x)

    def backward(self, grad: Tensor, sums: Sums, norm: Norm, zero: float) -> "Backward":
        """Begins a backward pass; `grad` is the gradient at the last layer's y, float32 [rows, classes]."""
        return Backward(grad, sums, norm)

    def to_inputs(self, layer: int, weights: "PackedBits", width: int, zero: float) -> Product:
        """Returns the product that takes the gradient at the sums of layer number `layer` to its inputs, `width` columns."""
        return self.way(layer, 0).by_bits(columns_of(weights.packed), len(weights.packed), width, zero)

    def bit_factors(self, layer: int, grad: Tensor, x: Tensor, neurons: int, inputs: int, zero: float) -> BitFactors:
        """Returns the weight gradient [neurons, inputs] of a layer whose inputs are bits.

        Args:
            grad: the gradient at the layer's sums, float32 [rows, width].
            x: the layer's inputs, in the form that the method `kept` returns.
        """
        return BitFactors(grad, x, neurons, inputs, zero, self.way(layer, 1), self.lean)

    def pixel_factors(self, grad: Tensor, pixels: Tensor, neurons: int, inputs: int) -> PixelFactors:
        """Returns the weight gradient [neurons, inputs] of the first layer, whose inputs are pixels, uint8 [rows, inputs]."""
        return PixelFactors(grad, pixels, neurons, self.way(0, 1), self.lean)


class Backward:
    """A backward pass through a network, from its last layer to its first.

    `of_weight` and `of_bias` are the gradients of weight and bias of the current layer's BatchNorm, float32 [width].
    """

    def __init__(self, grad: Tensor, sums: Sums, norm: Norm):
        self.grad = filled(grad, sums.z.shape[1])
        window = Window(sums, norm, inf)
        window.all(self.grad)
        self._enter(sums, norm, window)

    def _enter(self, sums: Sums, norm: Norm, window: Window) -> None:
        self.center = Centering(sums, norm, window)
        self.of_weight, self.of_bias = self.center.of_weight, self.center.of_bias

    def at_sums(self) -> Tensor:
        """Returns the gradient at the sums of the current layer, float32 [rows, width], and ends the pass."""
        self.center.all(self.grad)
        return self.grad

    def go_on(self, product: Product, sums: Sums, norm: Norm, window: float) -> Tensor:
        """Goes on from the current layer to the layer below.

        Args:
            product: the product that takes the gradient at the current layer's sums to its inputs.
            sums, norm: the sums and the BatchNorm of the layer below.
            window: the gradient passes the activation of the layer below where |y| ≤ `window`.

        Returns:
            The gradient at the sums of the layer that the pass leaves, float32 [rows, width].
        """
        passing, at_sums = Window(sums, norm, window), self.grad
        self.grad = backward.go_back(at_sums, self.center, product, passing)
        self._enter(sums, norm, passing)
        return at_sums
