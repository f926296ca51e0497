"""Activations as codes: whole numbers 0 … 2ⁿ − 1, in steps that the network learns."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from bnn_exp.nn.function import applied
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.requantize import least_clip
from bnn_exp.nn.saved import note_pixels

BITS = (4, 8)
FIRST_CLIP = 4.0  # in units of BatchNorm's output, whose standard deviation is near 1


class _Quantized(Function):
    """Codes, with a gradient straight through the rounding. The backward pass keeps only the codes, as the next layer does."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, clip: Tensor, levels: int) -> Tensor:
        return (y.float() * (levels / least_clip(clip))).round_().clamp_(0, levels).to(y.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])
        ctx.levels = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        codes, clip = ctx.saved_tensors
        per_code = ctx.levels / least_clip(clip)
        inside = torch.where(codes < ctx.levels, grad, 0)
        return inside * per_code.to(grad.dtype), (grad.sum() - inside.sum()) * per_code, None


_quantized = applied(_Quantized)


@exact
class Quantize(nn.Module):
    """A learned quantiser: code = clamp(round(y · levels / clip), 0, levels), levels = 2ⁿ − 1, for y ≥ 0 of any shape.

    The gradient passes straight through the rounding where the code is below `levels`, times levels / clip. The real parameter
    `clip` gets the gradient of the codes that are cut off, as in PACT (Choi et al. 2018, arXiv 1805.06085), for an output of
    code · clip / levels. The module returns the code itself: a BatchNorm follows the next product, so the factor has no effect.

    A clip below 2⁻⁶ counts as 2⁻⁶. A state without `clip`, such as that of a network of real activations, keeps the clip.

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
    """Returns the codes that `exact` computes, without a gradient of its own, and gives them the gradient of `learned`."""
    with torch.no_grad():
        codes = exact()
    if not torch.is_grad_enabled():
        return codes
    found = learned()
    return found + (codes - found).detach()  # exactly `codes`, because all three are small whole numbers
