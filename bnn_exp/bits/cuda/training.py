"""The operations with which the packed engine trains on a GPU.

Products are torch's. Forward products are int8 × int8 → int32: sums are exact. Backward products multiply gradients, in bf16 or
float32, by the values of bits and pixels, which are exact in bf16 too, and add up in float32. Operands are unpacked for a
product and dropped after it. All other operations are Triton's kernels (`bnn_exp.bits.cuda.kernels`).
"""

from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from bnn_exp.bits.cuda import kernels
from bnn_exp.bits.factors import ComputedGradient
from bnn_exp.bits.packing import PackedBits
from bnn_exp.bits.reference import LANES
from bnn_exp.nn.norm import scale_and_shift
from bnn_exp.nn.product import matmul

_BLOCK, _NEURONS = kernels.ROWS.value, kernels.NEURONS.value
_FEWEST = 17  # torch's product of integers takes no fewer rows: fewer are filled up with zeros


@dataclass(frozen=True)
class Sums:
    """The sums of a layer for a batch: z, int16 or int32 [rows, width], stands for the numbers a·z.

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
        inverse: 1/σ of the numbers a·z.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse: Tensor


def sums_of_bits(x: Tensor, weights: PackedBits, zero: float) -> Sums:
    """Returns the sums x Vᵀ of a batch of bits, uint8 [rows, bytes], and the values V of weights [neurons, inputs]."""
    operands = unpacked(PackedBits(x, weights.columns), zero, torch.int8), _matrix(weights, zero, torch.int8, x.shape[1])
    return Sums(_product_of_integers(*operands).to(torch.int16), 1.0)


def sums_of_pixels(x: Tensor, weights: PackedBits, zero: float) -> Sums:
    """Returns the sums x Vᵀ / 255 of a batch of pixels, uint8 [rows, inputs], and the values V of weights [neurons, inputs]."""
    v = _matrix(weights, zero, torch.int8, weights.packed.shape[1])
    centred = _filled(x.bitwise_xor(128).view(torch.int8), len(x), v.shape[1])  # x − 128 fits int8; 128·Σ v is added below
    return Sums(_product_of_integers(centred, v).add_(128 * v.sum(1, dtype=torch.int32)), 1 / 255)


def _product_of_integers(a: Tensor, v: Tensor) -> Tensor:
    """Returns a vᵀ, int32 [rows, width], of int8 operands."""
    return torch._int_mm(_filled(a, max(len(a), _FEWEST), a.shape[1]), v.t())[: len(a)]


def _filled(x: Tensor, rows: int, columns: int) -> Tensor:
    """Returns x extended with zeros to [rows, columns]; x itself if it has that size already."""
    return x if x.shape == (rows, columns) else F.pad(x, (0, columns - x.shape[1], 0, rows - len(x)))


def unpacked(bits: PackedBits, zero: float, dtype: torch.dtype) -> Tensor:
    """Returns the values of bits as `dtype` [rows, 8 · bytes], 0 beyond the last bit of a row."""
    return _matrix(bits, zero, dtype, bits.packed.shape[1], 1)


def _matrix(bits: PackedBits, zero: float, dtype: torch.dtype, row: int, multiple: int = LANES) -> Tensor:
    """Returns the values of bits as `dtype`, with rows filled up to a multiple and columns to 8 · `row`; the fill is 0."""
    (given, own), rows = bits.packed.shape, triton.cdiv(len(bits.packed), multiple) * multiple
    out = bits.packed.new_empty(rows, 8 * row, dtype=dtype)
    kernels.unpack[_blocks(out)](bits.packed, own, given, bits.columns, out, rows, 8 * row, zero)
    return out


def normalization(norm: nn.BatchNorm1d, sums: Sums) -> Norm:
    """Returns `norm` as it acts on a batch, in training or in evaluation; in training its running statistics are updated."""
    rows, width = sums.z.shape
    if norm.running_mean is not None and not norm.training:
        scale, shift = (t.to(sums.z.device) for t in scale_and_shift(norm))
        fill = (0, width - norm.num_features)
        vectors = scale * sums.a, norm.running_mean / sums.a, (norm.running_var + norm.eps).rsqrt()
        scale, mean, inverse = (F.pad(vector, fill) for vector in vectors)
        return Norm(scale, F.pad(shift, fill, value=-inf), mean, inverse)
    means, squares = _partial(sums.z)
    kernels.moments[_blocks(sums.z)](sums.z, rows, width, means, squares)
    found = Norm(*(means.new_empty(width) for _ in range(4)))
    kernels.normalize[_groups(width)](
        means,
        squares,
        rows,
        width,
        norm.num_features,
        sums.a,
        norm.eps,
        norm.momentum,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        found.scale,
        found.shift,
        found.mean,
        found.inverse,
        AFFINE=norm.affine,
        RUNNING=norm.running_mean is not None,
    )
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
    return found


def activations(sums: Sums, norm: Norm) -> Tensor:
    """Returns the packed bits 1[y ≥ 0] of the output y of a layer's BatchNorm, uint8 [rows, width / 8]."""
    rows, width = sums.z.shape
    bits = sums.z.new_empty(rows, width // 8, dtype=torch.uint8)
    kernels.activate[_blocks(sums.z)](sums.z, rows, width, norm.scale, norm.shift, bits)
    return bits


def normalized(sums: Sums, norm: Norm) -> Tensor:
    """Returns y, the output of a layer's BatchNorm, float32 [rows, width]."""
    return sums.z * norm.scale + norm.shift


class Backward:
    """A backward pass through a network, from its last layer to its first.

    `of_weight` and `of_bias` are the gradients of the current layer's BatchNorm, float32 [width].
    """

    def __init__(self, grad: Tensor, sums: Sums, norm: Norm, dtype: torch.dtype):
        self.grad, self.dtype = F.pad(grad, (0, sums.z.shape[1] - grad.shape[1])), dtype
        self._enter(sums, norm, inf)

    def _enter(self, sums: Sums, norm: Norm, window: float) -> None:
        self.sums, self.norm, self.window = sums, norm, window
        rows, width = sums.z.shape
        partial, vectors = _partial(sums.z), [norm.scale.new_empty(width) for _ in range(4)]
        kernels.total[_blocks(sums.z)](self.grad, sums.z, rows, width, norm.scale, norm.shift, norm.mean, window, *partial)
        kernels.slopes[_groups(width)](*partial, rows, width, sums.a, norm.scale, norm.inverse, *vectors)
        *self.slopes, self.of_weight, self.of_bias = vectors

    def at_sums(self) -> Tensor:
        """Returns the gradient at the sums of the current layer, [rows, width]."""
        (rows, width), norm = self.sums.z.shape, self.norm
        out = torch.empty_like(self.grad, dtype=self.dtype)
        vectors = norm.scale, norm.shift, norm.mean, self.window, self.sums.a, *self.slopes
        kernels.center[_blocks(self.sums.z)](self.grad, self.sums.z, rows, width, *vectors, out)
        return out

    def go_on(self, v: Tensor, sums: Sums, norm: Norm, window: float) -> Tensor:
        """Goes on from the current layer to the layer below.

        Args:
            v: the values of the current layer's weights, from `OnGPU.to_inputs`.
            sums, norm: the sums and the BatchNorm of the layer below.
            window: the gradient passes the activation of the layer below where |y| ≤ `window`.

        Returns:
            The gradient at the sums of the layer that the pass leaves, [rows, width].
        """
        at_sums = self.at_sums()
        self.grad = matmul(at_sums, v, self.dtype == torch.bfloat16)
        self._enter(sums, norm, window)
        return at_sums


class OnGPU:
    """The operations of a training on packed bits, on a GPU. `bnn_exp.bits.cpu.passes.OnCPU` has the same methods.

    Args:
        bf16: whether products round gradients to bfloat16; otherwise gradients are float32.
    """

    sums_of_bits = staticmethod(sums_of_bits)
    sums_of_pixels = staticmethod(sums_of_pixels)
    normalization = staticmethod(normalization)
    activations = staticmethod(activations)
    normalized = staticmethod(normalized)

    def __init__(self, bf16: bool):
        self.bf16, self.dtype = bf16, torch.bfloat16 if bf16 else torch.float32

    @staticmethod
    def kept(x: Tensor) -> Tensor:
        """Returns a layer's packed bits x unchanged: the backward pass takes them in this form."""
        return x

    def backward(self, grad: Tensor, sums: Sums, norm: Norm) -> Backward:
        """Begins a backward pass; `grad` is the gradient at the last layer's y, float32 [rows, classes]."""
        return Backward(grad, sums, norm, self.dtype)

    def to_inputs(self, layer: int, weights: PackedBits, width: int, zero: float) -> Tensor:
        """Returns the values of a layer's weights, [neurons, width], with the neurons filled up to a multiple of 64."""
        return _matrix(weights, zero, self.dtype, width // 8)

    def bit_factors(self, layer: int, grad: Tensor, x: Tensor, neurons: int, inputs: int, zero: float) -> ComputedGradient:
        """Returns the weight gradient of a layer on packed bits x, float32 [neurons, inputs]."""
        x = unpacked(PackedBits(x, inputs), zero, self.dtype)
        return ComputedGradient(matmul(grad.t(), x, self.bf16)[:neurons, :inputs])

    def pixel_factors(self, grad: Tensor, pixels: Tensor, neurons: int) -> ComputedGradient:
        """Returns the weight gradient of the first layer, float32 [neurons, inputs]."""
        return ComputedGradient(matmul(grad.t(), pixels.to(self.dtype), self.bf16)[:neurons].div_(255))


def _partial(z: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two empty float32 [blocks of rows, width], for partial sums."""
    blocks = triton.cdiv(len(z), _BLOCK)
    first, second = (z.new_empty(blocks, z.shape[1], dtype=torch.float32) for _ in range(2))
    return first, second


def _blocks(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x.shape[0], _BLOCK), triton.cdiv(x.shape[1], _BLOCK)


def _groups(width: int) -> tuple[int]:
    return (triton.cdiv(width, _NEURONS),)
