"""The operations of inference on packed bits, as torch operators.

This module alone chooses the code that computes them: numba's kernels on a CPU, Triton's on CUDA, plain torch everywhere else.

Weights are the tiles of their packed bits (`to_tiles`). Inputs are rows of packed bits, uint8 [batch, ≥ bytes of the tiles]; of
pixels, uint8 [batch, inputs]; or of real numbers, [batch, inputs]. The value w of a weight's bit 1 is 1, that of a bit 0 is
`zero`, 0 or −1. On bits x ∈ {0, 1} and on pixels the sums Σ x·w are therefore integers, and exact. `torch.compile` and
`torch.export` know the operators. They have no gradients.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bnn_exp.bits import reference
from bnn_exp.bits.checks import check_outputs, check_thresholds, sizes
from bnn_exp.bits.reference import LANES


def bit_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns Σ x·w of bits x, uint8 [batch, ≥ bytes]: int32 [batch, outputs]."""
    return _operator("bit_sums", x)(x, tiles, outputs, zero)


def pixel_sums(x: Tensor, tiles: Tensor, outputs: int, zero: int) -> Tensor:
    """Returns Σ x·w of pixels x, uint8 [batch, inputs]: int32 [batch, outputs]."""
    return _operator("pixel_sums", x)(x, tiles, outputs, zero)


def bit_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the bits 1[Σ x·w ≥ threshold] of bits x, packed: uint8 [batch, 8 · tiles].

    Args:
        thresholds: int32 [64 · tiles]; the largest int32 for outputs that do not exist.
        inverted: packed bits, uint8 [8 · tiles]; where one is 1, the output bit is 1[Σ x·w < threshold].
    """
    return _operator("bit_steps", x)(x, tiles, thresholds, inverted, zero)


def pixel_steps(x: Tensor, tiles: Tensor, thresholds: Tensor, inverted: Tensor, zero: int) -> Tensor:
    """Returns the bits 1[Σ x·w ≥ threshold] of pixels x, uint8 [batch, inputs], as `bit_steps` does of bits."""
    return _operator("pixel_steps", x)(x, tiles, thresholds, inverted, zero)


def real_product(x: Tensor, tiles: Tensor, outputs: int, zero: float, one: float) -> Tensor:
    """Returns Σ x·w of real numbers x [batch, inputs]: [batch, outputs] of x's dtype.

    Args:
        zero, one: the values of a weight's bits 0 and 1.
    """
    return _operator("real_product", x)(x, tiles, outputs, zero, one)


# A program saved by `torch.export` names its arguments as these schemas do.
# So the argument `flips`, elsewhere called `inverted`, keeps its name here.
_SUMS = "(Tensor x, Tensor tiles, int outputs, int zero) -> Tensor"
_STEPS = "(Tensor x, Tensor tiles, Tensor thresholds, Tensor flips, int zero) -> Tensor"
_REAL = "(Tensor x, Tensor tiles, int outputs, float zero, float one) -> Tensor"
SCHEMAS = {"bit_sums": _SUMS, "pixel_sums": _SUMS, "bit_steps": _STEPS, "pixel_steps": _STEPS, "real_product": _REAL}


def _operator(name: str, x: Tensor) -> Callable:
    """Returns the torch operator `name`, or for a plain tensor on a CPU its function.

    Torch's dispatcher takes longer than a layer of 1024² bits.
    """
    if x.is_cpu and type(x) is Tensor and not _compiling():
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
    try:
        from bnn_exp.bits.cuda import inference
    except ImportError:  # Triton is not installed
        return getattr(reference, name)
    return getattr(inference, name)


def _shape(name: str, x: Tensor, tiles: Tensor, *constants: Any) -> Tensor:
    """Returns an empty tensor of the result's shape and dtype, for torch.compile and torch.export."""
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
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    _library.impl(_name, lambda *arguments, name=_name: _on_cpu(name)(*arguments), "CPU")
    _library.impl(_name, lambda *arguments, name=_name: _on_cuda(name)(*arguments), "CUDA")
    torch.library.register_fake(f"bnn_exp::{_name}", partial(_shape, _name), lib=_library)
