"""The operations with which the packed engine trains on a GPU. `bnn_exp.bits.cuda.operations` defines them in plain torch.

Forward products multiply values and pixels in dtypes that keep every sum exact (`bnn_exp.bits.cuda.products`). An activation
writes the values that the next product reads. Backward products multiply gradients, in bf16 or float32, by values and pixels,
which are exact in bf16 too, and add up in float32. For the backward pass a layer keeps its sums alone. The activation follows
from the sums: the kernel that computes the gradient at the sums writes the activation once more. Each product unpacks its
weights, and frees the unpacked weights afterwards.
"""

from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.bits.cuda import operations, products
from bnn_exp.bits.factors import ComputedGradient
from bnn_exp.bits.packing import PackedBits
from bnn_exp.bits.reference import LANES
from bnn_exp.nn.product import matmul
from bnn_exp.nn.values import numbers_of_pixels


@dataclass(frozen=True)
class Sums:
    """The sums of a layer for a batch, equal to a·z. z is float16 or float32 [rows, width], and holds whole numbers.

    `bnn_exp.bits.cpu.forward.Sums` is the counterpart on a CPU.
    """

    z: Tensor
    a: float


@dataclass(frozen=True)
class Norm:
    """A BatchNorm in one step: y = z · scale + shift, all float32 [width].

    `bnn_exp.bits.cpu.forward.Norm` is the counterpart on a CPU.

    Args:
        mean: the mean of z.
        inverse: a/√(variance + eps), with the variance of the numbers a·z.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse: Tensor


class Backward:
    """A backward pass through a network, from its last layer to its first.

    `of_weight` and `of_bias` are the gradients of weight and bias of the current layer's BatchNorm, float32 [width].
    `activation` are the values of the current layer's activation, [rows, width]. They are the inputs of the layer above.
    """

    def __init__(self, grad: Tensor, sums: Sums, norm: Norm, zero: float, dtype: torch.dtype):
        self.zero, self.dtype = zero, dtype
        self._enter(grad.contiguous(), sums.z, norm, inf)

    def _enter(self, grad: Tensor, z: Tensor, norm: Norm, window: float) -> None:
        given, how = (grad, z, norm.scale, norm.shift, norm.mean), (self.zero, self.dtype)
        if len(z) <= operations.FEW:
            results = operations.gradient_at_sums(*given, norm.inverse, window, *how)
            self.grad, self.activation, self.of_weight, self.of_bias = results
        else:
            *slopes, self.of_weight, self.of_bias = operations.slopes_of_gradient(*given, norm.inverse, window)
            self.grad, self.activation = operations.centered_gradient(*given, window, *slopes, *how)

    def at_sums(self) -> Tensor:
        """Returns the gradient at the sums z of the current layer, [rows, width]."""
        return self.grad

    def go_on(self, v: Tensor, sums: Sums, norm: Norm, window: float) -> Tensor:
        """Goes on from the current layer to the layer below.

        Args:
            v: the values of the current layer's weights, from `OnGPU.to_inputs`.
            sums, norm: the sums and the BatchNorm of the layer below.
            window: the gradient passes the activation of the layer below where |y| ≤ `window`.

        Returns:
            The gradient at the sums z of the layer that the pass leaves, [rows, width].
        """
        at_sums = self.grad
        del self.grad, self.activation  # the next product needs their memory
        self._enter(at_sums @ v, sums.z, norm, window)
        return at_sums


class OnGPU:
    """The operations of a training on packed bits, on a GPU. `bnn_exp.bits.cpu.passes.OnCPU` has the same methods.

    Args:
        bf16: True if products round gradients to bfloat16; otherwise gradients are float32.
        fp8: True if the GPU multiplies fp8 numbers.
    """

    def __init__(self, bf16: bool, fp8: bool):
        self.bf16, self.dtype, self.fp8 = bf16, torch.bfloat16 if bf16 else torch.float32, fp8

    @staticmethod
    def pixels(x: Tensor) -> Tensor:
        """Returns pixels, uint8 [rows, inputs], in bfloat16, with columns of 0 up to a multiple of 8."""
        return numbers_of_pixels(x, x.shape[1] + -x.shape[1] % 8, torch.bfloat16)

    @staticmethod
    def sums_of_pixels(x: Tensor, weights: PackedBits, zero: float) -> Sums:
        """Returns the sums x Vᵀ / 255 of pixels x, from `pixels`. V are the values of `weights` [neurons, inputs].

        A bit 0 of the weights has the value `zero`.
        """
        return Sums(operations.exact_product(x, _matrix(weights, zero, x.shape[1], x.dtype), torch.float32), 1 / 255)

    @staticmethod
    def sums_of_bits(x: Tensor, weights: PackedBits, zero: float) -> Sums:
        """Returns the sums x Vᵀ of values x, from `activated`. V are the values of `weights` [neurons, inputs].

        A bit 0 has the value `zero`, in x and in the weights.
        """
        v = _matrix(weights, zero, x.shape[1], x.dtype)
        return Sums(operations.exact_product(x, v, products.of_sums(weights.columns, zero)), 1.0)

    def normalization(self, norm: nn.BatchNorm1d, sums: Sums) -> Norm:
        """Returns the `Norm` that `norm` applies to a batch with these sums. In training, updates `norm`'s statistics."""
        if norm.running_mean is not None and not norm.training:
            return _by_statistics(norm, sums)
        return Norm(*operations.norm_of_sums(*_arguments(norm, sums)))

    def activated(self, norm: nn.BatchNorm1d, sums: Sums, zero: float) -> tuple[Norm, Tensor]:
        """Returns the `Norm` of a layer, and the values of the bits 1[y ≥ 0] of BatchNorm's output y, [rows, width]."""
        dtype = products.of_values(norm.num_features, self.fp8)
        if _in_one_kernel(norm, sums):
            *vectors, values = operations.normalized_and_activated(*_arguments(norm, sums), zero, dtype)
            return Norm(*vectors), values
        found = self.normalization(norm, sums)
        return found, operations.activated(sums.z, found.scale, found.shift, zero, dtype)

    def normalized(self, norm: nn.BatchNorm1d, sums: Sums) -> tuple[Norm, Tensor]:
        """Returns the `Norm` of a layer, and the output y of its BatchNorm, float32 [rows, neurons]."""
        if _in_one_kernel(norm, sums):
            *vectors, y = operations.normalized(*_arguments(norm, sums))
            return Norm(*vectors), y
        found = self.normalization(norm, sums)
        return found, torch.addcmul(found.shift, sums.z, found.scale)[:, : norm.num_features]

    @staticmethod
    def kept(x: Tensor, last: bool) -> Tensor | None:
        """Returns a layer's inputs x if the backward pass ends at this layer; else None, since that pass computes x again."""
        return x if last else None

    def backward(self, grad: Tensor, sums: Sums, norm: Norm, zero: float) -> Backward:
        """Begins a backward pass; `grad` is the gradient at the last layer's y, float32 [rows, classes]."""
        return Backward(grad, sums, norm, zero, self.dtype)

    def to_inputs(self, layer: int, weights: PackedBits, width: int, zero: float) -> Tensor:
        """Returns the values of a layer's weights, [neurons, width], with the neurons filled up to a multiple of 64."""
        return _matrix(weights, zero, width, self.dtype)

    def bit_factors(self, layer: int, grad: Tensor, x: Tensor, neurons: int, inputs: int, zero: float) -> ComputedGradient:
        """Returns the weight gradient of a layer on inputs x, values of bits, float32 [neurons, inputs]."""
        return ComputedGradient(matmul(grad.t(), x.to(self.dtype), self.bf16)[:neurons, :inputs])

    def pixel_factors(self, grad: Tensor, pixels: Tensor, neurons: int, inputs: int) -> ComputedGradient:
        """Returns the weight gradient of the first layer, float32 [neurons, inputs]. `pixels` are from the method `pixels`."""
        return ComputedGradient(matmul(grad.t(), pixels, self.bf16)[:neurons, :inputs])


def _matrix(weights: PackedBits, zero: float, width: int, dtype: torch.dtype) -> Tensor:
    """Returns the values of weights, [neurons, width], filled up with 0; the neurons to a multiple of 64."""
    rows = len(weights.packed) + -len(weights.packed) % LANES
    return operations.values_of_bits(weights.packed, weights.columns, zero, rows, width, dtype)


def _in_one_kernel(norm: nn.BatchNorm1d, sums: Sums) -> bool:
    """Returns True if one kernel can compute the BatchNorm of a batch and its results."""
    return len(sums.z) <= operations.FEW and (norm.running_mean is None or norm.training)


def _arguments(norm: nn.BatchNorm1d, sums: Sums) -> tuple:
    """Returns the arguments of `operations.norm_of_sums`."""
    statistics = norm.running_mean, norm.running_var, norm.num_batches_tracked
    return sums.z, sums.a, norm.num_features, norm.eps, norm.momentum, norm.weight, norm.bias, *statistics


def _by_statistics(norm: nn.BatchNorm1d, sums: Sums) -> Norm:
    """Returns the BatchNorm of an evaluation, from its running statistics."""
    inverse = (norm.running_var + norm.eps).rsqrt()
    scale, shift = inverse, -norm.running_mean * inverse
    if norm.affine:
        scale, shift = inverse * norm.weight, torch.addcmul(norm.bias, shift, norm.weight)
    fill = (0, sums.z.shape[1] - norm.num_features)
    vectors = scale * sums.a, norm.running_mean / sums.a, inverse * sums.a
    scale, mean, inverse = (F.pad(vector, fill) for vector in vectors)
    return Norm(scale, F.pad(shift, fill, value=-inf), mean, inverse)
