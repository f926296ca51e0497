"""A layer of bits in training on a GPU: what `bnn_exp.bits.cpu.forward` and `backward` are on a CPU.

Products are torch's. Forward they are int8 × int8 → int32, so that sums are exact; backward the values of bits and pixels,
exact in bf16 too, meet errors that are rounded to bf16 (or are float32), summed up in fp32. Operands are unpacked when they are
needed, and dropped. All between the products is Triton's (`bnn_exp.bits.cuda.kernels`).
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
_FEWEST = 17  # rows that torch's product of integers takes


@dataclass(frozen=True)
class Sums:
    """What a layer's product gives for a batch: the numbers a·z, for z int16 or int32 [rows, width]."""

    z: Tensor
    a: float


@dataclass(frozen=True)
class Norm:
    """A BatchNorm in one step, float32 [width] each: y = z · scale + shift, by the mean of z and 1/σ of the numbers."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse: Tensor


def bit_sums(x: Tensor, weights: PackedBits, zero: float) -> Sums:
    """x Vᵀ for the bits of x, uint8 [rows, bytes], and of weights."""
    operands = unpacked(PackedBits(x, weights.columns), zero, torch.int8), _matrix(weights, zero, torch.int8, x.shape[1])
    return Sums(_product_of_integers(*operands).to(torch.int16), 1.0)


def pixel_sums(x: Tensor, weights: PackedBits, zero: float) -> Sums:
    """x Vᵀ for x = pixels / 255, uint8 [rows, inputs]."""
    v = _matrix(weights, zero, torch.int8, weights.packed.shape[1])
    centred = _filled(x.bitwise_xor(128).view(torch.int8), len(x), v.shape[1])  # x − 128
    return Sums(_product_of_integers(centred, v).add_(128 * v.sum(1, dtype=torch.int32)), 1 / 255)


def _product_of_integers(a: Tensor, v: Tensor) -> Tensor:
    return torch._int_mm(_filled(a, max(len(a), _FEWEST), a.shape[1]), v.t())[: len(a)]


def _filled(x: Tensor, rows: int, columns: int) -> Tensor:
    """x with 0 up to that size, not copied where it has it."""
    return x if x.shape == (rows, columns) else F.pad(x, (0, columns - x.shape[1], 0, rows - len(x)))


def unpacked(bits: PackedBits, zero: float, dtype: torch.dtype) -> Tensor:
    """The values of bits as `dtype` [rows, 8 · bytes], 0 beyond the last."""
    return _matrix(bits, zero, dtype, bits.packed.shape[1], 1)


def _matrix(bits: PackedBits, zero: float, dtype: torch.dtype, row: int, multiple: int = LANES) -> Tensor:
    """The same with rows filled to a multiple, and columns to those of `row` bytes."""
    (given, own), rows = bits.packed.shape, triton.cdiv(len(bits.packed), multiple) * multiple
    out = bits.packed.new_empty(rows, 8 * row, dtype=dtype)
    kernels.unpack[_blocks(out)](bits.packed, own, given, bits.columns, out, rows, 8 * row, zero)
    return out


def normalization(norm: nn.BatchNorm1d, sums: Sums) -> Norm:
    """What `norm` does with a batch of such sums, in training or not; its running statistics go on."""
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
    """The bits 1[y ≥ 0], uint8 [rows, width / 8]."""
    rows, width = sums.z.shape
    bits = sums.z.new_empty(rows, width // 8, dtype=torch.uint8)
    kernels.activate[_blocks(sums.z)](sums.z, rows, width, norm.scale, norm.shift, bits)
    return bits


def normalized(sums: Sums, norm: Norm) -> Tensor:
    """y, float32 [rows, width]."""
    return sums.z * norm.scale + norm.shift


class Backward:
    """The errors' way back through a network. `of_weight`, `of_bias`: the gradients of the BatchNorm at which it is."""

    def __init__(self, grad: Tensor, sums: Sums, norm: Norm, dtype: torch.dtype):
        self.errors, self.dtype = F.pad(grad, (0, sums.z.shape[1] - grad.shape[1])), dtype
        self._enter(sums, norm, inf)

    def _enter(self, sums: Sums, norm: Norm, window: float) -> None:
        self.sums, self.norm, self.window = sums, norm, window
        rows, width = sums.z.shape
        partial, vectors = _partial(sums.z), [norm.scale.new_empty(width) for _ in range(4)]
        kernels.total[_blocks(sums.z)](self.errors, sums.z, rows, width, norm.scale, norm.shift, norm.mean, window, *partial)
        kernels.slopes[_groups(width)](*partial, rows, width, sums.a, norm.scale, norm.inverse, *vectors)
        *self.slopes, self.of_weight, self.of_bias = vectors

    def at_sums(self) -> Tensor:
        """The errors at the numbers of this layer, [rows, width]."""
        (rows, width), norm = self.sums.z.shape, self.norm
        out = torch.empty_like(self.errors, dtype=self.dtype)
        vectors = norm.scale, norm.shift, norm.mean, self.window, self.sums.a, *self.slopes
        kernels.center[_blocks(self.sums.z)](self.errors, self.sums.z, rows, width, *vectors, out)
        return out

    def go_on(self, v: Tensor, sums: Sums, norm: Norm, window: float) -> Tensor:
        """By the values of this layer's weights to the y of the layer below; gives the errors at the sums of this layer."""
        at_sums = self.at_sums()
        self.errors = matmul(at_sums, v, self.dtype == torch.bfloat16)
        self._enter(sums, norm, window)
        return at_sums


class OnGPU:
    """What `bnn_exp.training.steps.packed` computes with, as `bnn_exp.bits.cpu.passes.OnCPU`.

    Args:
        bf16: whether errors are rounded to bfloat16 in products; else they are float32.
    """

    bit_sums = staticmethod(bit_sums)
    pixel_sums = staticmethod(pixel_sums)
    normalization = staticmethod(normalization)
    activations = staticmethod(activations)
    normalized = staticmethod(normalized)

    def __init__(self, bf16: bool):
        self.bf16, self.dtype = bf16, torch.bfloat16 if bf16 else torch.float32

    @staticmethod
    def kept(x: Tensor) -> Tensor:
        return x

    def backward(self, grad: Tensor, sums: Sums, norm: Norm) -> Backward:
        return Backward(grad, sums, norm, self.dtype)

    def to_inputs(self, layer: int, weights: PackedBits, width: int, zero: float) -> Tensor:
        return _matrix(weights, zero, self.dtype, width // 8)

    def bit_factors(self, layer: int, errors: Tensor, x: Tensor, neurons: int, inputs: int, zero: float) -> ComputedGradient:
        x = unpacked(PackedBits(x, inputs), zero, self.dtype)
        return ComputedGradient(matmul(errors.t(), x, self.bf16)[:neurons, :inputs])

    def pixel_factors(self, errors: Tensor, pixels: Tensor, neurons: int) -> ComputedGradient:
        return ComputedGradient(matmul(errors.t(), pixels.to(self.dtype), self.bf16)[:neurons].div_(255))


def _partial(z: Tensor) -> tuple[Tensor, Tensor]:
    """Room for two vectors of every block of rows."""
    blocks = triton.cdiv(len(z), _BLOCK)
    return tuple(z.new_empty(blocks, z.shape[1], dtype=torch.float32) for _ in range(2))


def _blocks(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x.shape[0], _BLOCK), triton.cdiv(x.shape[1], _BLOCK)


def _groups(width: int) -> tuple[int]:
    return (triton.cdiv(width, _NEURONS),)
