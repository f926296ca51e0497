"""The ways to multiply a gradient by bits or by pixels in a backward pass on a CPU.

Both products of a layer multiply real numbers G by bits with values V: the gradient at the sums by the layer's weights, and the
transposed gradient by the layer's inputs. A `Way` prepares the bits once, and the result, a `Product`, multiplies some rows of
G at a time. `bnn_exp.bits.cpu.rounding` has one more way.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits.cpu.kernels import bf16_products, input_gradient
from bnn_exp.bits.cpu.layout import factors_of, up_to, words_of
from bnn_exp.nn import processor
from bnn_exp.nn.packing import unpack

ENDLESS = 2**62  # the number of summands of a product that no caller needs to divide
_ROWS, _COLUMNS = 2048, 1024  # of a bf16 product at a time: its operands and its result take a few megabytes


class Product(Protocol):
    """The product G · V of real numbers G, float32 [rows, summands], with the values V [summands, width] of bits."""

    width: int  # columns of the result
    shares_rows: bool  # True if several threads may call `rows`, False if `rows` itself uses all threads

    def rows(self, numbers: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Computes rows `begin` to `end` − 1 of `out`, float32 [rows, width], from these rows of `numbers`, float32.

        `numbers` may have more columns than there are summands.
        """


class Way(Protocol):
    """A way to multiply gradients by bits or by pixels."""

    @property
    def most(self) -> int:
        """The most summands of one product. The caller adds up the parts of a longer product."""

    def by_bits(self, columns: Tensor, summands: int, width: int, zero: float) -> Product:
        """Returns the product with bits.

        Args:
            columns: row k packs the bits of column k of V, uint8 [≤ width, bytes], bytes a multiple of 8.
            width: a multiple of 32.
            zero: the value of a bit 0; a bit 1 has the value 1.
        """

    def by_pixels(self, grad: Tensor, pixels: Tensor, neurons: int) -> Tensor:
        """Returns gradᵀ · pixels / 255, float32 [neurons, inputs].

        Args:
            grad: the gradient at a layer's sums, float32 [rows, ≥ neurons].
            pixels: uint8 [rows, inputs].
        """


class ByProduct:
    """A `Product` by torch, in the dtype of the values."""

    shares_rows = False

    def __init__(self, columns: Tensor, summands: int, width: int, zero: float):
        self.width, self.summands = width, summands
        self.v = values_of(columns, width, zero)[:, :summands].t().contiguous()

    def rows(self, numbers: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Computes rows `begin` to `end` − 1 of `out`, float32 [rows, width], from these rows of `numbers`, float32."""
        torch.mm(numbers[begin:end, : self.summands], self.v, out=out[begin:end])


class ByBF16Product:
    """A `Product` by torch, which rounds G and the result to bf16 and adds up in float32."""

    shares_rows = False

    def __init__(self, columns: Tensor, summands: int, width: int, zero: float):
        self.columns, self.summands, self.width, self.zero = columns, summands, width, zero

    def rows(self, numbers: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Computes rows `begin` to `end` − 1 of `out`, float32 [rows, width], from these rows of `numbers`, float32."""
        for first in range(begin, end, _ROWS):
            rows = slice(first, min(first + _ROWS, end))
            rounded = numbers[rows, : self.summands].bfloat16()
            for k in range(0, self.width, _COLUMNS):
                some = slice(k, min(k + _COLUMNS, self.width))
                v = in_bf16(self.columns[some], self.zero)[:, : self.summands]
                out[rows, some.start : some.start + len(v)] = rounded @ v.t()
            out[rows, len(self.columns) :] = 0


class ByLookUp:
    """A `Product` in float32 by look-ups (`kernels.input_gradient`), on a processor with AVX-512.

    The look-ups take a third of the time of torch's float32 product on a Zen 4, and a fifth on a Zen 5.
    """

    shares_rows = True

    def __init__(self, columns: Tensor, summands: int, width: int, zero: float):
        self.width, self.summands = width, up_to(summands, 32)
        self.words, self.factors = words_of(columns[:, : self.summands // 8], width), factors_of(zero, 1.0)

    def rows(self, numbers: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Computes rows `begin` to `end` − 1 of `out`, float32 [rows, width], from these rows of `numbers`, float32."""
        source, target = (t.data_ptr() + 4 * t.stride(0) * begin for t in (numbers, out))
        bits = self.words.data_ptr(), self.width, self.factors.data_ptr()
        input_gradient.input_gradient(source, numbers.stride(0), end - begin, self.summands, *bits, target)


class ByBF16LookUp:
    """A `Product` by look-ups of sums that are rounded to bf16 (`kernels.bf16_products`), with AVX512-BF16."""

    shares_rows = True

    def __init__(self, columns: Tensor, summands: int, width: int, zero: float):
        self.width, self.summands = width, summands
        words = -(-summands // bf16_products.IN_WORD)
        self.words = torch.zeros(width // 32, words, 32, dtype=torch.int32)
        bf16_products.words_of_30(columns.numpy().view("u8"), self.words.numpy())
        self.factors = factors_of(zero, zero, 1.0)

    def rows(self, numbers: Tensor, begin: int, end: int, out: Tensor) -> None:
        """Computes rows `begin` to `end` − 1 of `out`, float32 [rows, width], from these rows of `numbers`, float32."""
        source, target = (t.data_ptr() + 4 * t.stride(0) * begin for t in (numbers, out))
        bits = self.words.data_ptr(), self.width, self.factors.data_ptr()
        bf16_products.product(source, numbers.stride(0), end - begin, self.summands, *bits, target)


class InFloat32:
    """The `Way` that rounds no gradient."""

    @property
    def most(self) -> int:
        """The most summands of one product: the look-up tables of four neurons (64 KiB) stay in the cache."""
        return 1024 if processor.AVX512 else ENDLESS

    def by_bits(self, columns: Tensor, summands: int, width: int, zero: float) -> Product:
        """Returns the product with bits: by look-ups if the processor has AVX-512, else by torch."""
        return (ByLookUp if processor.AVX512 else ByProduct)(columns, summands, width, zero)

    def by_pixels(self, grad: Tensor, pixels: Tensor, neurons: int) -> Tensor:
        """Returns gradᵀ · pixels / 255, float32 [neurons, inputs]."""
        return (grad[:, :neurons].t() @ pixels.float()).div_(255)


class InBF16(InFloat32):
    """The `Way` that rounds gradients, or sums of five gradients, to bf16, and adds up in float32.

    Args:
        products: True if torch multiplies bf16 faster than float32 on this processor. If False, the gradient of the first
            layer's weights, which only torch can compute, stays in float32.
    """

    @property
    def most(self) -> int:
        """The most summands of one product."""
        return ENDLESS

    def __init__(self, products: bool = True):
        self.products = products

    def by_bits(self, columns: Tensor, summands: int, width: int, zero: float) -> Product:
        """Returns the product with bits: by look-ups if the processor has AVX512-BF16, but not AMX; else by torch."""
        look_up = processor.AVX512_BF16 and not processor.AMX
        return (ByBF16LookUp if look_up else ByBF16Product)(columns, summands, width, zero)

    def by_pixels(self, grad: Tensor, pixels: Tensor, neurons: int) -> Tensor:
        """Returns gradᵀ · pixels / 255, float32 [neurons, inputs]. The integers up to 255 are exact in bf16."""
        if not self.products:
            return super().by_pixels(grad, pixels, neurons)
        whole, x = torch.empty(neurons, pixels.shape[1]), pixels.bfloat16()
        for n in range(0, neurons, _COLUMNS):
            some = slice(n, min(n + _COLUMNS, neurons))
            whole[some] = grad[:, some].bfloat16().t() @ x
        return whole.div_(255)


def in_bf16(columns: Tensor, zero: float) -> Tensor:
    """Returns the values of packed bits, uint8 [columns, bytes], as bf16 [columns, 8 · bytes]."""
    values = torch.empty(len(columns), 8 * columns.shape[1], dtype=torch.bfloat16)
    of_zero = {0.0: 0, -1.0: 0xBF80}[zero]  # the bits of the bf16
    bf16_products.values_in_bf16(columns.numpy(), len(columns), of_zero, values.view(torch.int16).numpy())
    return values


def values_of(columns: Tensor, width: int, zero: float) -> Tensor:
    """Returns the values of packed bits, uint8 [≤ width, bytes], as float32 [width, 8 · bytes]."""
    bits = unpack(columns, (len(columns), 8 * columns.shape[1])).mul_(1 - zero).add_(zero)
    return F.pad(bits, (0, 0, 0, width - len(columns)))
