"""The operations of inference on packed bits, as torch operators.

This module alone chooses the code of an operator: numba's kernels on a CPU, Triton's on CUDA, plain torch everywhere else.
Tests send tensors on a CPU to Triton's kernels (`bnn_exp.nn.operators.kernels_everywhere`).

Weights are the tiles of their packed bits (`to_tiles`). An input x is packed bits, uint8 [batch, ≥ bytes of the tiles], pixels,
uint8 [batch, inputs], or real numbers, [batch, inputs]. A weight w is 1 for a bit 1, and `zero` (0 or −1) for a bit 0. For bits
and pixels x, the sums Σ x·w are therefore integers, and exact. `torch.compile` and `torch.export` know the operators. The
operators have no gradients.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.bits.checks import check_outputs, check_thresholds, sizes
from bnn_exp.bits.reference import LANES
from bnn_exp.config.installed import has_triton
from bnn_exp.nn import operators as gpu


def bit_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of packed bits x, uint8 [batch, ≥ bytes]: int32 [batch, outputs].

    Args:
        tiles: the packed bits of the weights w, from `to_tiles`.
        zero: the value of w for a bit 0, 0 or −1. For a bit 1, w is 1.
    """
    return _operator("bit_sums", x)(x, tiles, outputs, zero)


def pixel_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns the sums Σ x·w of pixels x, uint8 [batch, inputs]: int32 [batch, outputs].

    Args:
        tiles: the packed bits of the weights w, from `to_tiles`.
        zero: the value of w for a bit 0, 0 or −1. For a bit 1, w is 1.
    """
    return _operator("pixel_sums", x)(x, tiles, outputs, zero)


def bit_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of packed bits x, uint8 [batch, ≥ bytes]: uint8 [batch, 8 · tiles].

    Args:
        tiles, zero: see `bit_sums`.
        thresholds: int32 [64 · tiles]; the largest int32 for outputs that do not exist.
        inverted: packed bits, uint8 [8 · tiles]. For an output whose bit here is 1, the result is 1[Σ x·w < threshold].
    """
    return _operator("bit_steps", x)(x, tiles, thresholds, inverted, zero)


def pixel_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the packed bits 1[Σ x·w ≥ threshold] of pixels x, uint8 [batch, inputs]. For the rest, see `bit_steps`."""
    return _operator("pixel_steps", x)(x, tiles, thresholds, inverted, zero)


def real_product(x: Tensor, tiles: Tensor, outputs: int, zero: float, one: float) -> Tensor:
    """Returns the sums Σ x·w of real numbers x [batch, inputs]: [batch, outputs] of x's dtype.

    Args:
        tiles: the packed bits of the weights w, from `to_tiles`.
        zero, one: the values of w for a bit 0 and for a bit 1.
    """
    return _operator("real_product", x)(x, tiles, outputs, zero, one)


_AFFINE = "Tensor offset, Tensor weight, Tensor bias, int factor, float divisor"


def _empty_scores(x: Tensor, tiles: Tensor, offset: Tensor, *constants: Any) -> Tensor:
    return x.new_empty(len(x), len(offset), dtype=torch.float32)


@gpu.operator(
    f"(Tensor x, Tensor tiles, {_AFFINE}, int zero, bool pixels) -> Tensor",
    kernels="bnn_exp.bits.cuda.inference:scores",
    launches=2,
    fake=_empty_scores,
)
def scores(
    x: Tensor, tiles: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, factor: int, divisor: float, zero: int, pixels: bool
) -> Tensor:
    """Returns (offset + factor · Σ x·w) / divisor · weight + bias, float32 [batch, outputs], of packed bits or pixels x.

    The bracket and the quotient are rounded to float32. The rest is rounded once, at the end, as torch's BatchNorm on a CPU
    rounds. On a GPU few rows take one launch, more rows take two.

    Args:
        tiles, zero: see `bit_sums`.
        offset: int32 [outputs].
        weight, bias: float32 [outputs].
        pixels: True if x is pixels, uint8 [batch, inputs]; False if x is packed bits, uint8 [batch, ≥ bytes].
    """
    sums = (pixel_sums if pixels else bit_sums)(x, tiles, len(offset), zero)
    product = torch.add(offset, sums, alpha=factor).to(torch.float32) / divisor
    return (product.double() * weight + bias).to(torch.float32)


# A program saved by `torch.export` names its arguments as these schemas do.
# So the argument `flips`, elsewhere called `inverted`, keeps its name here.
_SUMS = "(Tensor x, Tensor tiles, int outputs, int zero) -> Tensor"
_STEPS = "(Tensor x, Tensor tiles, Tensor thresholds, Tensor flips, int zero) -> Tensor"
_REAL = "(Tensor x, Tensor tiles, int outputs, float zero, float one) -> Tensor"
SCHEMAS = {"bit_sums": _SUMS, "pixel_sums": _SUMS, "bit_steps": _STEPS, "pixel_steps": _STEPS, "real_product": _REAL}


def _operator(name: str, x: Tensor) -> Callable:
    """Returns the torch operator `name`. For a plain tensor x on a CPU, returns the Python function behind the operator.

    A direct call of this function avoids torch's dispatcher, which takes longer than a layer of 1024² bits.
    """
    if x.is_cpu and type(x) is Tensor and not _compiling() and not gpu.kernels_everywhere:
        return _ON_CPU.get(name) or _on_cpu(name)
    return getattr(torch.ops.bnn_exp, name).default


_compiling = torch.compiler.is_compiling
_ON_CPU: dict[str, Callable] = {}  # operator name: function; filled at the first call, because the functions import numba


def _on_cpu(name: str) -> Callable:
    from bnn_exp.bits.cpu import inference

    _ON_CPU.update({each: getattr(inference, each) for each in SCHEMAS})
    return _ON_CPU[name]


@cache
def _on_cuda(name: str) -> Callable:
    if not has_triton():
        return getattr(reference, name)
    from bnn_exp.bits.cuda import inference

    return getattr(inference, name)


def _in_dispatcher(name: str, *arguments: Any) -> Tensor:
    """Computes the operator `name` for tensors on a CPU, behind torch's dispatcher."""
    return (_on_cuda if gpu.kernels_everywhere else _on_cpu)(name)(*arguments)


def _shape(name: str, x: Tensor, tiles: Tensor, *constants: Any) -> Tensor:
    """Returns an empty tensor with the shape and dtype of the operator's result, for torch.compile and torch.export."""
    kind, result = name.split("_")
    rows, _, groups, _ = sizes(x, tiles, kind)
    if result == "steps":
        check_thresholds(constants[0], constants[1], tiles)
        return x.new_empty(rows, LANES // 8 * groups)
    check_outputs(constants[0], groups)
    return x.new_empty(rows, constants[0], dtype=torch.int32 if result == "sums" else x.dtype)


_library = torch.library.Library("bnn_exp", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    gpu.LAUNCHES[_name] = 3 if _name == "real_product" else 2  # at most: a layer of few rows is one launch
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    _library.impl(_name, partial(_in_dispatcher, _name), "CPU")
    _library.impl(_name, lambda *arguments, name=_name: _on_cuda(name)(*arguments), "CUDA")
    torch.library.register_fake(f"bnn_exp::{_name}", partial(_shape, _name), lib=_library)
