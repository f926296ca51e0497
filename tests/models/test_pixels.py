"""Standardised pixels are whole numbers times a power of two, so products with binary weights are exact."""

import pytest
import torch
import torch.nn.functional as F
from helpers import on_both, where

from bnn_exp.models.pixels import OfPixels, standardize_pixels, whole_statistics
from bnn_exp.models.vgg import VGG
from bnn_exp.nn import operators


def network(mean, std, channels=1):
    made = OfPixels()
    made.keep_statistics(channels, mean, std)
    return made


def check_standardized(standardized, exponents):
    """Compares every pixel in float32 and bfloat16 with (x − m) / 2ᵏ, for every whole mean m and for the exponents k."""
    values = torch.arange(256)
    images = values.to(torch.uint8).expand(1, 256, 256).unsqueeze(-1).contiguous()
    for k in exponents:
        made = network([m / 255 for m in range(256)], [2**k / 255], 256)
        exact = (values - values[:, None]).double()[None, :, :, None] / 2**k
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(standardized(images, made.mean, made.std, dtype).cpu().double(), exact)
        assert torch.equal(made.standardized(images / 255).double(), exact)


def test_standardised_pixels_are_exact_for_every_mean_and_spread():
    check_standardized(standardize_pixels, range(9))


@pytest.mark.parametrize("_", [pytest.param(0, marks=on_both())])
@pytest.mark.usefixtures("triton_runs")
def test_the_kernel_gives_the_same_numbers(_, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(operators, "kernels_everywhere", True)
    check_standardized(
        lambda images, mean, std, dtype: standardize_pixels(images.to(where()), mean.to(where()), std.to(where()), dtype), (6,)
    )
    images = torch.randint(256, (3, 2, 5, 7), dtype=torch.uint8, device=where())
    mean, std = torch.rand(2, 1, 1, device=where()), torch.rand(2, 1, 1, device=where()) + 0.1  # as in older files
    found = standardize_pixels(images, mean, std, torch.float32)
    assert torch.equal(found.cpu(), ((images.cpu() - 255 * mean.cpu()) / (255 * std.cpu())))


def test_the_statistics_are_whole_numbers_near_the_given_ones():
    mean, std = (0.1307, 0.4914, 0.999), (0.3081, 0.2, 0.25)
    m, spread = whole_statistics(mean, std)
    assert all(abs(255 * (a - b)) <= 0.5 for a, b in zip(m, mean, strict=True)) and spread == 64 / 255  # 255 · 0.2527 = 64.4
    assert whole_statistics([0.0], [0.0]) == ([0.0], 256 / 255) and whole_statistics([0.0], [1e-9])[1] == 1 / 255


@pytest.mark.parametrize(("zero", "one"), [(0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5)])
def test_a_convolution_of_standardised_pixels_is_a_whole_sum(zero, one):
    """The float32 product equals Σ (x − m)·w, in integers, times 2⁻ᵏ (and ½ for centred weights)."""
    made = VGG((3, 16, 16), 10, channels=(8,), mean=(0.2, 0.5, 0.7), std=(0.2, 0.3, 0.3))
    images, bits = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), torch.randint(2, (8, 3, 5, 5))
    found = F.conv2d(made.standardized(images), torch.where(bits == 1, one, zero), padding=2)
    whole, unit = (255 * made.mean).round().long(), (0.5 if zero == -0.5 else 1) / (255 * made.std[0, 0, 0]).item()
    w = torch.where(bits == 1, 1, 0 if zero == 0 else -1)
    u = F.conv2d((images.long() - whole).double(), w.double(), padding=2)
    assert torch.equal(found.double(), u * unit) and torch.equal(u, u.round())
