"""The forward pass of a layer of bits in training on a CPU: sums, BatchNorm and activation, computed on packed bits.

The value of a bit 0 is `zero`, 0 or −1, in weights and in inputs; the value of a bit 1 is 1. The bits of a batch are uint8
[rows, bytes], as `bnn_exp.bits.pack` packs them. A width is a number of neurons, rounded up to a multiple of 64. The
number of threads changes no result: each sum has a fixed order, or is computed in chunks of CHUNK rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.bits.cpu.kernels import batch_norm, packed_bits, pixel_products, products
from bnn_exp.bits.cpu.kernels.batch_norm import CHUNK
from bnn_exp.bits.cpu.layout import filled, up_to
from bnn_exp.bits.cpu.threads import share_chunks, share_out
from bnn_exp.bits.reference import LANES, to_tiles
from bnn_exp.nn import processor
from bnn_exp.nn.norm import scale_and_shift
from bnn_exp.nn.product import pixel_sums

if TYPE_CHECKING:
    from bnn_exp.bits.packing import PackedBits  # at run time this import would be circular


def share_rows(work: Callable[[int, int], None], rows: int) -> None:
    """Calls work(begin, end) for parts of range(rows), made of whole chunks, one part for each of torch's threads."""
    share_chunks(work, rows, CHUNK)


@dataclass(frozen=True)
class Sums:
    """The sums of a layer for a batch: the numbers a·z + c, of z, int16 or float32 [rows, width], and c for each neuron.

    z is Σ b·v of the inputs' bits b and the weights' values v. If the values of input bits are −1 and 1, the number is
    Σ (2b − 1)·v = 2·Σ b·v − Σ v, so a is 2 and c is −Σ v. Otherwise a is 1 and c is 0; of pixels, z is Σ x·v / 255.

    `bnn_exp.bits.cuda.training.Sums` is the counterpart on a GPU.
    """

    z: Tensor
    a: float
    c: Tensor  # float32 [width]

    @property
    def arrays(self) -> tuple[np.ndarray, np.float32, np.ndarray]:
        """The fields z, a and c as the kernels take them."""
        return self.z.numpy(), np.float32(self.a), self.c.numpy()


def sums_of_bits(x: Tensor, weights: "PackedBits", zero: float) -> Sums:
    """Returns the sums x Vᵀ of packed bits x, uint8 [rows, bytes]. V are the values of `weights` [neurons, inputs].

    A bit 0 has the value `zero`, in x and in the weights.
    """
    tiles = to_tiles(weights.packed)
    groups, columns, _ = tiles.shape
    z = torch.empty(len(x), LANES * groups, dtype=torch.int16)

    def of_rows(begin: int, end: int) -> None:
        source, target = x.data_ptr() + x.stride(0) * begin, z.data_ptr() + 2 * z.stride(0) * begin
        products.bit_sums_int16(source, x.stride(0), end - begin, tiles.data_ptr(), columns, groups, int(zero), target)

    share_rows(of_rows, len(x))
    if not zero:
        return Sums(z, 1.0, torch.zeros(LANES * groups))
    c = torch.empty(z.shape[1])
    packed_bits.negated_sums(weights.packed.numpy(), weights.columns, c.numpy())
    return Sums(z, 2.0, c)


def sums_of_pixels(x: Tensor, weights: "PackedBits", zero: float) -> Sums:
    """Returns the sums x Vᵀ / 255 of pixels x, uint8 [rows, inputs]. V are the values of `weights` [neurons, inputs].

    A bit 0 of the weights has the value `zero`. z is float32, equal to the result of `bnn_exp.nn.product.pixel_product`.
    """
    width = up_to(len(weights.packed), LANES)
    if not processor.VNNI:
        v = weights.unpack(torch.int8)
        v = F.pad(2 * v - 1 if zero else v, (0, 0, 0, width - len(v)))
        return Sums(pixel_sums(x, v).div_(255), 1.0, torch.zeros(width))
    x = x.contiguous()
    if rest := -x.shape[1] % pixel_products.FOUR:
        x = F.pad(x, (0, rest))
    fours = torch.empty(width // LANES, x.shape[1] // pixel_products.FOUR, LANES, dtype=torch.int32)
    pixel_products.weights_of_fours(weights.packed.numpy(), int(zero), fours.numpy())
    z = torch.empty(len(x), width)

    def of_rows(begin: int, end: int) -> None:
        source, target = x.data_ptr() + x.shape[1] * begin, z.data_ptr() + 4 * width * begin
        pixel_products.scaled_pixel_sums(source, x.shape[1], end - begin, fours.data_ptr(), len(fours), target)

    share_rows(of_rows, len(x))
    return Sums(z, 1.0, torch.zeros(width))


@dataclass(frozen=True)
class Norm:
    """A BatchNorm in one step: y = number · scale + shift, where the numbers are a layer's sums. Vectors are float32 [width].

    `bnn_exp.bits.cuda.training.Norm` is the counterpart on a GPU. In columns that belong to no neuron every y is −∞.

    Args:
        mean, inverse: mean and 1/σ of the numbers, by which the BatchNorm normalizes.
        batch: True if mean and inverse come from this batch, False if they are the running statistics.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse: Tensor
    batch: bool

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The fields scale and shift as the kernels take them."""
        return self.scale.numpy(), self.shift.numpy()


def moments(sums: Sums) -> tuple[Tensor, Tensor]:
    """Returns the mean of a layer's sums and Σ (number − mean)² in every column, float32 [width]."""
    z, a, c = sums.arrays
    mean, squares = np.empty(z.shape[1], np.float32), np.empty(z.shape[1], np.float32)

    def of_groups(first: int, last: int) -> None:
        for group in range(first, last):
            batch_norm.moments(z, a, c, LANES * group, LANES * (group + 1), mean, squares)

    share_out(of_groups, z.shape[1] // LANES)
    return torch.from_numpy(mean), torch.from_numpy(squares)


def normalization(norm: nn.BatchNorm1d, sums: Sums) -> Norm:
    """Returns the `Norm` that `norm` applies to a batch with these sums. In training, updates `norm`'s running statistics."""
    width = sums.z.shape[1]
    if norm.running_mean is not None and not norm.training:
        scale, shift = scale_and_shift(norm)
        mean, inverse = norm.running_mean, (norm.running_var + norm.eps).rsqrt()
        return Norm(filled(scale, width), filled(shift, width, -inf), filled(mean, width), filled(inverse, width), False)
    mean, squares = moments(sums)
    n = norm.num_features
    weight, bias = (torch.ones(n), torch.zeros(n)) if norm.weight is None else (norm.weight.detach(), norm.bias.detach())
    inverse, scale, shift, unbiased = vectors = torch.empty(4, width)
    given = mean.numpy(), squares.numpy(), len(sums.z), weight.numpy(), bias.numpy(), norm.eps
    batch_norm.norm_vectors(*given, *vectors.numpy())
    if norm.running_mean is not None:
        neurons = slice(norm.num_features)
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean[neurons], norm.momentum)
        norm.running_var.lerp_(unbiased[neurons], norm.momentum)
    return Norm(scale, shift, mean, inverse, True)


def activations(sums: Sums, norm: Norm) -> Tensor:
    """Returns the packed bits 1[y ≥ 0] of the output y of a layer's BatchNorm, uint8 [rows, width / 8]."""
    bits = torch.empty(len(sums.z), sums.z.shape[1] // 8, dtype=torch.uint8)
    arguments, target = (*sums.arrays, *norm.arrays), bits.numpy()
    share_rows(lambda begin, end: batch_norm.activations(*arguments, begin, end, target), len(bits))
    return bits


def normalized(sums: Sums, norm: Norm) -> Tensor:
    """Returns y, the output of a layer's BatchNorm, float32 [rows, width]."""
    y = torch.empty(sums.z.shape)
    batch_norm.normalized(*sums.arrays, *norm.arrays, 0, len(y), y.numpy())
    return y
