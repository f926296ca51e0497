"""The arithmetic of an MLP of bits in training on a CPU, all in one place: that of `training`, `gradients` and `rounding`."""

from collections.abc import Callable
from math import inf

from torch import Tensor

from bnn_exp.bits.cpu import forward
from bnn_exp.bits.cpu.backward import BitFactors, Centering, Gate, PixelFactors, ToInputs, go_back
from bnn_exp.bits.cpu.forward import Norm, Sums, columns_of, filled
from bnn_exp.bits.cpu.rounding import RoundedBitFactors, RoundedPixelFactors, RoundedToInputs, Rounding
from bnn_exp.bits.packing import PackedBits


class OnCPU:
    """What `bnn_exp.training.steps.packed` computes with.

    Args:
        rounding: how errors are rounded, of a layer and which of its gradients (0: its inputs', 1: its weights'); None: not.
    """

    bit_sums = staticmethod(forward.bit_sums)
    pixel_sums = staticmethod(forward.pixel_sums)
    normalization = staticmethod(forward.normalization)
    activations = staticmethod(forward.activations)
    normalized = staticmethod(forward.normalized)
    kept = staticmethod(columns_of)  # of a layer's inputs, for the backward pass

    def __init__(self, rounding: Callable[[int, int], Rounding] | None = None):
        self.rounding = rounding

    def backward(self, grad: Tensor, sums: Sums, norm: Norm) -> "Backward":
        """The way back from the last y, whose gradient is float32 [rows, classes]."""
        return Backward(grad, sums, norm)

    def to_inputs(self, layer: int, weights: PackedBits, width: int, zero: float) -> ToInputs | RoundedToInputs:
        """What takes the errors of a layer to those of the layer before, of that width."""
        if self.rounding is None:
            return ToInputs(weights, width, zero)
        return RoundedToInputs(weights, width, zero, self.rounding(layer, 0))

    def bit_factors(self, layer: int, errors: Tensor, x: Tensor, neurons: int, inputs: int, zero: float) -> BitFactors:
        """The gradient of the weights of a layer on bits, which were `kept`."""
        if self.rounding is None:
            return BitFactors(errors, x, neurons, inputs, zero)
        return RoundedBitFactors(errors, x, neurons, inputs, zero, self.rounding(layer, 1))

    def pixel_factors(self, errors: Tensor, pixels: Tensor, neurons: int) -> PixelFactors:
        """The gradient of the weights of the first layer."""
        if self.rounding is None:
            return PixelFactors(errors, pixels, neurons)
        return RoundedPixelFactors(errors, pixels, neurons, self.rounding(0, 1))


class Backward:
    """The errors' way back through a network. `of_weight`, `of_bias`: the gradients of the BatchNorm at which it is."""

    def __init__(self, grad: Tensor, sums: Sums, norm: Norm):
        self.errors = filled(grad, sums.z.shape[1])
        gate = Gate(sums, norm, inf)
        gate.all(self.errors)
        self._enter(sums, norm, gate)

    def _enter(self, sums: Sums, norm: Norm, gate: Gate) -> None:
        totals = gate.totals
        self.center = Centering(sums, norm, totals)
        self.of_weight, self.of_bias = (totals.products * norm.inverse).float(), totals.errors.float()

    def at_sums(self) -> Tensor:
        """The errors at the sums of this layer, float32 [rows, width]; the way ends here."""
        self.center.all(self.errors)
        return self.errors

    def go_on(self, to_inputs: ToInputs | RoundedToInputs, sums: Sums, norm: Norm, window: float) -> Tensor:
        """To the y of the layer below; gives those at the sums of this layer."""
        gate, at_sums = Gate(sums, norm, window), self.errors
        self.errors = go_back(at_sums, self.center, to_inputs, gate)
        self._enter(sums, norm, gate)
        return at_sums
