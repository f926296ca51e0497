"""Activations as codes: whole numbers 0 … 2ⁿ − 1, in steps that the network learns."""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from bnn_exp.nn.function import applied, is_compiled, takes_kernels
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.operators import operator
from bnn_exp.nn.pooling import nhwc
from bnn_exp.nn.requantize import least_clip
from bnn_exp.nn.saved import note_pixels

BITS = (4, 8)
FIRST_CLIP = 4.0  # in units of BatchNorm's output, whose standard deviation is near 1
_COMPILED, _KERNELS = "bnn_exp.bits.cpu.codes:", "bnn_exp.nn.cuda.codes:"


def per_code(clip: Tensor, levels: int) -> Tensor:
    """Returns levels / clip, without dimensions: the number of codes in a unit of y."""
    return levels / least_clip(clip)


@operator(
    "(Tensor y, Tensor clip, int levels) -> Tensor",
    kernels=f"{_KERNELS}codes_of",
    cpu=f"{_COMPILED}codes_of",
    launches=1,
    fake=lambda y, clip, levels: torch.empty_like(y),
)
def codes_of(y: Tensor, clip: Tensor, levels: int) -> Tensor:
    """Returns clamp(round(y · levels / clip), 0, levels) in the shape and dtype of y, which is contiguous.

    The calculation is in float32. A half is rounded to the even number.
    """
    return (y.float() * per_code(clip, levels)).round().clamp(0, levels).to(y.dtype)


@operator(
    "(Tensor grad, Tensor codes, Tensor clip, int levels) -> (Tensor, Tensor of_clip)",
    kernels=f"{_KERNELS}codes_gradient",
    cpu=f"{_COMPILED}codes_gradient",
    launches=2,
    fake=lambda grad, codes, clip, levels: (torch.empty_like(grad), torch.empty_like(clip)),
)
def codes_gradient(grad: Tensor, codes: Tensor, clip: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Returns the gradients at y, in the shape and dtype of `grad`, and at the clip, see `Quantize`.

    Args:
        grad: the gradient at `codes`, the result of `codes_of`; both are contiguous.
    """
    g, factor = grad.float(), per_code(clip, levels)
    inside = torch.where(codes < levels, g, 0)
    return (inside * factor).to(grad.dtype), (g - inside).sum() * factor


class _Quantized(Function):
    """Codes with a straight-through gradient. The backward pass needs only the codes, which the next layer keeps anyway."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, clip: Tensor, levels: int) -> Tensor:
        if not _takes_operators(y):
            return unwrap(codes_of)(y, clip, levels)
        return _like_images(codes_of(_rows(y), clip, levels))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])
        ctx.levels = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        codes, clip = ctx.saved_tensors
        if not _takes_operators(codes):
            return *unwrap(codes_gradient)(grad, codes, clip, ctx.levels), None
        at_y, at_clip = codes_gradient(_rows(grad), _rows(codes), clip, ctx.levels)
        return _like_images(at_y), at_clip, None


def _takes_operators(y: Tensor) -> bool:
    """Returns True if the operators compute with y, False if their definitions in plain torch do."""
    return takes_kernels(y) or is_compiled(y)


def _rows(x: Tensor) -> Tensor:
    """Returns x contiguous, images as [batch, height, width, channels]."""
    return nhwc(x) if x.dim() == 4 else x.contiguous()


def _like_images(x: Tensor) -> Tensor:
    """Returns x in the order of dimensions that `_rows` took: images as [batch, channels, height, width]."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


_quantized = applied(_Quantized)


@exact
class Quantize(nn.Module):
    """A learned quantiser: code = clamp(round(y · levels / clip), 0, levels), levels = 2ⁿ − 1, for y ≥ 0 of any shape.

    The gradient passes straight through the rounding where the code is below `levels`, times levels / clip. The real parameter
    `clip` gets the gradient of the codes that are cut off, as in PACT (Choi et al. 2018, arXiv 1805.06085), for an output of
    code · clip / levels. The module returns the code itself: a BatchNorm follows the next product, so the factor has no effect.

    A clip below 2⁻⁶ counts as 2⁻⁶. If a loaded state has no `clip`, such as that of a network of real activations, the module
    keeps its own.

    Args:
        bits: n, 4 or 8.
        first_clip: the clip of a new quantiser.

    Raises:
        ValueError: `bits` is neither 4 nor 8.
    """

    def __init__(self, bits: int, first_clip: float = FIRST_CLIP):
        super().__init__()
        if bits not in BITS:
            raise ValueError(f"activation_bits={bits}: must be one of {', '.join(map(str, BITS))}")
        self.levels = 2**bits - 1
        self.clip = nn.Parameter(torch.tensor(first_clip))

    def forward(self, y: Tensor) -> Tensor:
        return note_pixels(_quantized(y, self.clip, self.levels))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        state_dict.setdefault(f"{prefix}clip", self.clip.detach())
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def evaluated(exact: Callable[[], Tensor], learned: Callable[[], Tensor]) -> Tensor:
    """Returns the codes that `exact` computes, with the gradient of those that `learned` computes."""
    with torch.no_grad():
        codes = exact()
    if not torch.is_grad_enabled():
        return codes
    found = learned()
    return found + (codes - found).detach()  # exactly `codes`, because all three are small whole numbers
