"""Requantisation against exact rational arithmetic, and against the limits that make float32, int32 and float64 agree."""

from fractions import Fraction

import pytest
import torch
from helpers import HARD

from bnn_exp.errors import UserError
from bnn_exp.nn.requantize import MOST_REACH, fractions, refuse_not_finite, requantization, requantize

HUGE = (3e38, -3e38, 1e30, 255.0, -254.5)


def random_channels(rng):
    """Returns scale and shift of channels as trained networks have them: a code is 1/100 to 1000 sums wide."""
    scale = torch.randn(40, generator=rng) * 10 ** torch.empty(40).uniform_(-4, 1, generator=rng)
    return scale, 3 * torch.randn(40, generator=rng)


def extreme_channels():
    pairs = torch.cartesian_prod(torch.tensor(HARD + HUGE), torch.tensor((*HARD, 0.5, 2.0, 4.0)))
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def sums(reach, rng):
    spread = torch.randint(-reach, reach + 1, (150,), generator=rng)
    return torch.cat([spread, torch.arange(-20, 21).clamp(-reach, reach), torch.tensor([-reach, reach])]).to(torch.int32)


def cases():
    rng = torch.Generator().manual_seed(0)
    for levels in (15, 255):
        for reach in (1, 9 * 255, 64 * 9 * levels, MOST_REACH):
            for scale, shift in (random_channels(rng), extreme_channels()):
                for clip, unit in ((4.0, 1.0), (0.37, 0.5), (1e-3, 2.0**-6)):
                    yield levels, reach, scale, shift, clip, unit, sums(reach, rng)


def test_codes_are_those_of_exact_arithmetic_in_every_number_format():
    for levels, reach, scale, shift, clip, unit, u in cases():
        bias, multiplier = requantization(scale, shift, torch.tensor(clip), levels, reach, unit)
        rows = u[:, None].expand(-1, len(scale))
        codes = requantize(rows, bias, multiplier, levels)
        m, s = fractions(multiplier)
        assert torch.equal(m.double() / 2.0 ** s.double(), multiplier.double()) and (s >= 0).all()
        product = (rows.long() + bias) * m  # int64 holds each product
        assert product.abs().max() < 2**31
        exact = (product / 2.0 ** s.double()).round().clamp(0, levels)  # float64 holds the quotients exactly
        assert torch.equal(codes.double(), exact)
        assert torch.equal(bias.float().int(), bias)
        assert torch.equal(requantize(rows.float(), bias, multiplier, levels), codes)
        cut = (codes == 0) | (codes == levels) | (codes == codes[:1]).all(0)
        assert (product.abs() < 2**24)[~cut].all()


def test_codes_follow_the_line_of_the_layer():
    """The code differs from clip(scale · unit · u + shift) by the roundings that `requantization` states, and no more."""
    for levels, reach, scale, shift, clip, unit, u in cases():
        bias, multiplier = requantization(scale, shift, torch.tensor(clip), levels, reach, unit)
        codes = requantize(u[:, None].expand(-1, len(scale)), bias, multiplier, levels)
        per_code = levels / Fraction(torch.tensor(clip).item())
        for channel in range(0, len(scale), 19):
            slope = Fraction(scale[channel].item()) * Fraction(unit) * per_code
            start, rounded = Fraction(shift[channel].item()) * per_code, Fraction(multiplier[channel].item())
            if abs(slope) > levels:
                slope, start = (
                    slope * levels / abs(slope),
                    Fraction(levels) / 2 - (levels / Fraction(2) - start) * levels / abs(slope),
                )
            steepness = Fraction(0) if codes[:, channel].unique().numel() == 1 else rounded
            width = min(2 * reach, (levels + 1) / abs(slope)) if slope else 0
            allowed = Fraction(1, 2) + abs(steepness) / 2 + abs(steepness - slope) * width / 2 + Fraction(1, 2**20)
            for at in range(0, len(u), 23):
                line = min(max(slope * int(u[at]) + start, Fraction(0)), Fraction(levels))
                assert abs(line - int(codes[at, channel])) <= allowed


def test_a_constant_channel_has_its_code_everywhere():
    for levels, reach in ((15, 9), (255, MOST_REACH)):
        shift = torch.linspace(-1, 5, 61)
        bias, multiplier = requantization(torch.zeros(61), shift, torch.tensor(4.0), levels, reach)
        codes = requantize(sums(reach, torch.Generator().manual_seed(0))[:, None].expand(-1, 61), bias, multiplier, levels)
        assert torch.equal(codes, (shift.double() * (levels / 4)).round().clamp(0, levels).float().expand_as(codes))


def test_a_steep_slope_is_a_step_between_the_right_sums():
    scale, shift = torch.tensor([1e6, -1e6, 3e30, 1e6]), torch.tensor([-3.3e6, 3.7e6, 1.2e30, -0.8e6])
    bias, multiplier = requantization(scale, shift, torch.tensor(4.0), 255, 9)
    u = torch.arange(-9, 10, dtype=torch.int32)[:, None].expand(-1, 4)
    assert torch.equal(requantize(u, bias, multiplier, 255), 255.0 * (scale * u + shift > 0))


def test_images_and_rows_have_the_same_codes():
    bias, multiplier = requantization(torch.rand(5), torch.randn(5), torch.tensor(4.0), 255, 999)
    images = torch.randint(-999, 1000, (2, 5, 3, 4), dtype=torch.int32)
    rows = images.permute(0, 2, 3, 1).flatten(0, 2)
    codes = requantize(images, bias, multiplier, 255).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.equal(codes, requantize(rows, bias, multiplier, 255))
    half = requantize(torch.tensor([[0.5, 1.5, 2.5]]) * 2, torch.zeros(3, dtype=torch.int32), torch.full((3,), 0.5), 255)
    assert half.tolist() == [[0, 2, 2]]


def test_what_has_no_codes_is_refused():
    with pytest.raises(ValueError, match=f"reach={MOST_REACH + 1}"):
        requantization(torch.ones(1), torch.ones(1), torch.tensor(4.0), 255, MOST_REACH + 1)
    for name, number in (("scale", torch.nan), ("shift", -torch.inf), ("clip", torch.inf)):
        with pytest.raises(UserError, match=f"dense.0: its {name} is not "):
            refuse_not_finite("dense.0", **{name: torch.tensor([1.0, number])})
