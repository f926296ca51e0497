"""Requantisation: a BatchNorm, ReLU and quantisation of whole sums, folded into one whole number and one multiplier.

A layer adds up a whole number u for each output. Its BatchNorm gives y = scale · unit · u + shift, and the code of y is
y · levels / clip, rounded and clamped to 0 … levels. Every form of a network computes this code as

    code = clamp(rint((u + bias) · multiplier), 0, levels),  rint: to the nearest whole number, a half to the even one

with a whole `bias` and a `multiplier` M / 2^S of whole M and S. The limits of M and S make float32, int32 and float64 give the
same code:

- |(u + bias) · M| < 2^24 for each u whose code is not cut off at 0 or `levels`, so float32 computes the product exactly;
- |(u + bias) · M| < 2^31 for each reachable u, so int32 holds the product;
- the bias is a number of float32 too.

A channel with the same code c for each reachable u gets M = 1 and bias = c · 2^S, or M = 0 for c = 0. Its products may exceed
2^24, but stay so far from a half that no rounding changes c.
"""

import torch
from torch import Tensor

from bnn_exp.errors import UserError

MOST_REACH = 2**21  # the greatest |u| for which all limits hold, with up to 255 levels
LEAST_CLIP = 2.0**-6
_MARGIN = 128  # float32 rounds whole numbers below 2^31 by at most 64


class NoIntegers(UserError):
    """The error of a network that has no form in whole numbers."""


def requantization(
    scale: Tensor, shift: Tensor, clip: Tensor | float, levels: int, reach: int, unit: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Returns bias and multiplier of each output for y = scale · unit · u + shift.

    The calculation is in float64, by operations that IEEE 754 rounds correctly, so every device gives the same bits. The
    multiplier is the slope a = scale · unit · levels / clip, rounded to M / 2^S with the greatest S that the limits allow. The
    bias makes the rounded line meet the exact line in the middle of the reachable sums that are not cut off. So the
    code differs from the exact line by at most ½ + |M/2^S| / 2 + |M/2^S − a| times half the width of these sums.

    - A slope whose magnitude is above `levels` counts as ±`levels`: the code jumps from 0 to `levels` between two sums.
    - A slope that rounds to 0, such as that of a scale of 0, gives the same code for every sum: that of the middle.
    - A falling slope (scale < 0) has a negative M.

    Args:
        scale, shift: float32 [out], finite, see `bnn_exp.nn.norm.scale_and_shift`.
        clip: the number y with the greatest code. A clip below `LEAST_CLIP` counts as `LEAST_CLIP`.
        levels: the greatest code, 15 or 255.
        reach: the greatest |u| that the layer can add up, at most `MOST_REACH`.
        unit: the product of the float layer is unit · u.

    Returns:
        bias, int32 [out], and multiplier, float32 [out].

    Raises:
        ValueError: `reach` is greater than `MOST_REACH`.
    """
    if reach > MOST_REACH:
        raise ValueError(f"reach={reach}: at most {MOST_REACH}")
    per_code = levels / least_clip(torch.as_tensor(clip, dtype=torch.float64, device=scale.device))
    slope, start = scale.double() * unit * per_code, shift.double() * per_code
    middle, value = _middle(slope, start, levels, reach)
    steepness = slope.clamp(-levels, levels)
    power = _power(steepness, levels, reach)
    numerator = (steepness * power).round()
    bias = (value * power / numerator - middle).round()
    flat = (numerator == 0) | (middle.abs() >= reach)
    code, constant = value.round().clamp(0, levels), float(2 ** ((reach + _MARGIN).bit_length() + 1))
    bias = torch.where(flat, code * constant, bias)
    multiplier = torch.where(flat, (code > 0) / constant, numerator / power)
    return bias.float().to(torch.int32), multiplier.float()


def requantization_of_layer(
    scale: Tensor, shift: Tensor, clip: Tensor, levels: int, inputs: int, encoding: str, step: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Returns the `requantization` of a layer that reads codes, or standardised pixels, whole numbers times `step`.

    Args:
        inputs: the number of inputs of each output.
        encoding: the encoding of the weights. u counts a weight of a bit 0 as 0 (boolean) or −1.
    """
    return requantization(scale, shift, clip, levels, 255 * inputs, step * unit(encoding))


def unit(encoding: str) -> float:
    """Returns the factor between the product of a float layer and u: ½ for centred weights ±½, else 1."""
    return 0.5 if encoding == "centred" else 1.0


def average_multiplier(clip: Tensor, levels: int, positions: int, most: float) -> Tensor:
    """Returns the multiplier, float32 without dimensions, for code = clamp(rint(Σ codes · multiplier), 0, levels).

    Args:
        clip: the clip of the mean, in units where a mean of `levels` is `most`.
        positions: the number of codes in the sum.
    """
    slope = most / (least_clip(clip.double()) * positions).reshape(1)
    power = _power(slope, levels, 255 * positions)
    return ((slope * power).round().clamp(min=1) / power)[0].float()


def least_clip(clip: Tensor) -> Tensor:
    """Returns the clip, at least `LEAST_CLIP`."""
    return clip.clamp(min=LEAST_CLIP)


def _middle(slope: Tensor, start: Tensor, levels: int, reach: int) -> tuple[Tensor, Tensor]:
    """Returns the middle of the reachable sums that are not cut off, and the exact line at the middle: float64 [out].

    If each reachable sum is cut off, the middle is `reach` or −`reach`, the nearest end.
    """
    ends = torch.stack([(-0.5 - start) / slope, (levels + 0.5 - start) / slope])
    reached = ends.clamp(-reach, reach)
    middle = torch.where(slope == 0, 0.0, reached.sum(0) / 2)
    whole = (reached == ends).all(0)  # then the middle is exactly halfway, where a steep line would round badly
    return middle, torch.where(whole, levels / 2, (slope * middle + start).clamp(-0.5, levels + 0.5))


def _power(slope: Tensor, levels: int, reach: int) -> Tensor:
    """Returns the greatest 2^S, float64 [out], with 2^S · (levels + ½) ≤ 2^24 and 2^S · |slope| within the limit of int32."""
    most = int(2**24 / (levels + 0.5)).bit_length() - 1
    powers = (1 << torch.arange(most + 1, device=slope.device)).double()
    limit = max((2**30 - 2**24) // reach, 1)  # |bias| ≤ reach + 2^24 / M, so (reach + |bias|) · M < 2^31
    return (powers * (slope.abs()[:, None] * powers <= limit)).amax(1).clamp(min=1)


def requantize(u: Tensor, bias: Tensor, multiplier: Tensor, levels: int) -> Tensor:
    """Returns the codes of sums in the shape of u, float32 (float64 for u of float64).

    Args:
        u: whole numbers, int32 or floating point (rounded first): [batch, out] or [batch, out, height, width].
        bias, multiplier: int32 and float32 [out], see `requantization`.
    """
    shape = -1, *[1] * (u.dim() - 2)
    bias, multiplier = bias.view(shape), multiplier.view(shape)
    biased = u.round().add_(bias.float()) if u.is_floating_point() else (u + bias).float()
    # In place: a network in evaluation has large sums, and each tensor less is a pass through memory less.
    return biased.mul_(multiplier).round_().clamp_min_(0).clamp_max_(levels)


def fractions(multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """Returns M and S, int32 in the shape of `multiplier`, with multiplier = M / 2^S and the least S ≥ 0."""
    powers = 2.0 ** torch.arange(32, dtype=torch.float64)
    products = multiplier.cpu().double()[..., None] * powers
    exponent = (products == products.round()).int().argmax(-1, keepdim=True)
    return products.gather(-1, exponent)[..., 0].int(), exponent[..., 0].int()


def refuse_not_finite(name: str, **numbers: Tensor) -> None:
    """Raises NoIntegers if one of the tensors of the layer `name`, such as its scales, holds a number that is not finite."""
    for kind, tensor in numbers.items():
        if not tensor.isfinite().all():
            raise NoIntegers(f"{name}: its {kind} is not a finite number, so the network has no form in integers")
