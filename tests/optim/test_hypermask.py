"""Compares the masks of HyperMask with their equations, written out scalar by scalar."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from helpers import drawn, settings_of

from bnn_exp.config import rules
from bnn_exp.config.registry import fields_of
from bnn_exp.optim import HyperMask
from bnn_exp.optim.masks import MASKS


def bits(*shape):
    return torch.nn.Parameter(torch.full(shape, 0.5).bernoulli_(generator=torch.Generator().manual_seed(1)))


def gradient(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def wrong(w, g):
    """Returns True for each weight that the gradient wants to flip: g·s > 0, where s is the value ±1 of the bit."""
    return [
        (gi > 0 and wi == 1) or (gi < 0 and wi == 0) for wi, gi in zip(w.flatten().tolist(), g.flatten().tolist(), strict=True)
    ]


def step(w, g, **options):
    """Takes one step of a new optimizer. Returns True for each weight that flipped, and the optimizer."""
    before = w.detach().clone()
    optimizer = HyperMask([w], **options)
    w.grad = g
    optimizer.step()
    assert set(w.unique().tolist()) <= {0.0, 1.0}
    flipped = (w != before).flatten().tolist()
    assert int(optimizer.flips[0]) == sum(flipped)
    return flipped, optimizer


def test_the_settings_know_every_mask_and_its_strength():
    assert get_args(fields_of(rules.HyperMask)["mask"].type) == tuple(MASKS)
    settings = settings_of("optimizer=hypermask").optimizer
    for name, mask in MASKS.items():
        assert rules.strength(replace(settings, mask=name)) == mask.strength


def test_random_gives_the_masked_weights_the_sign_of_minus_g():
    w, g = bits(30, 40), gradient(30, 40)
    g[0, :10] = 0  # w* = 1[−g ≥ 0] is 1 there
    before = w.detach().flatten().tolist()
    step(w, g, delta=0.3, mask="random", seed=5)
    masked = set((drawn(1200, seed=5, tensor=0, step=0) < 0.3).nonzero().flatten().tolist())
    target = [1.0 if -x >= 0 else 0.0 for x in g.flatten().tolist()]
    expected = [target[i] if i in masked else before[i] for i in range(1200)]
    assert w.flatten().tolist() == expected
    assert 0 < len(masked) < 1200


def test_top_flips_the_largest_wrong_signed_gradients_and_no_others():
    w, g = bits(20, 50), gradient(20, 50)
    candidates = wrong(w, g)
    flipped, _ = step(w, g, delta=0.1, mask="top")
    ranked = sorted((i for i in range(1000) if candidates[i]), key=lambda i: -abs(g.flatten()[i].item()))
    assert {i for i in range(1000) if flipped[i]} == set(ranked[:100])


def test_top_flips_no_right_weight_when_the_wrong_ones_run_out():
    w, g = bits(20, 50), gradient(20, 50)
    candidates = wrong(w, g)
    flipped, _ = step(w, g, delta=1.0, mask="top")
    assert flipped == candidates


def test_wpm_flips_where_the_error_function_reaches_a_half():
    w, g = bits(20, 50), gradient(20, 50)
    candidates = wrong(w, g)
    flipped, _ = step(w, g, mask="wpm", temperature="const", lr=0.7)
    assert flipped == [c and math.erf(0.7 * abs(x)) >= 0.5 for c, x in zip(candidates, g.flatten().tolist(), strict=True)]


def test_ewm_flips_with_the_probability_of_the_error_function():
    g = gradient(8).repeat(20_000, 1)
    w = torch.nn.Parameter((g > 0).float())  # the gradient is against every bit
    flipped, _ = step(w, g.clone(), mask="ewm", temperature="const", lr=0.5)
    rates = torch.tensor(flipped).view(20_000, 8).float().mean(0)
    for rate, x in zip(rates.tolist(), g[0].tolist(), strict=True):
        p = math.erf(0.5 * abs(x))
        assert abs(rate - p) < 5 * math.sqrt(p * (1 - p) / 20_000)  # five standard deviations


def test_ewm_leaves_weights_of_the_right_sign():
    g = gradient(50, 50)
    w = torch.nn.Parameter((g < 0).float())
    assert not any(step(w, g, mask="ewm", temperature="const", lr=100.0)[0])


@pytest.mark.parametrize("temperature", ["gaussian", "scaled_gaussian"])
def test_temperatures_follow_their_recursion(temperature):
    """wpm flips bits with |g| ≥ 0.4769/τ. The test computes τ in scalars over several steps."""
    lr, w = 3.0, bits(40, 40)
    optimizer = HyperMask([w], mask="wpm", temperature=temperature, lr=lr)
    variance = 0.01**2
    for t in range(4):
        g = gradient(40, 40) * 10.0**-t
        values = g.flatten().tolist()
        mean = sum(values) / len(values)
        sigma_g = math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))
        if temperature == "gaussian":
            tau, variance = lr / (math.sqrt(2) * math.sqrt(variance)), variance + (lr * sigma_g) ** 2
        else:
            tau = lr * math.sqrt(math.pi) / (2 * variance)
            variance += math.pi / 2 * (lr * sigma_g / math.sqrt(variance)) ** 2
        expected = [c and abs(x) >= 0.4769 / tau for c, x in zip(wrong(w, g), values, strict=True)]
        before = w.detach().clone()
        w.grad = g
        optimizer.step()
        assert (w != before).flatten().tolist() == expected
        assert any(expected) or t > 0
    assert optimizer.state[w]["variance"].item() == pytest.approx(variance, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1]),
        ("linear", [1, 0.75, 0.5]),
        ("cosine", [1, 0.853553, 0.5]),
        ("geometric", [1, 0.177828, 0.0316228, 0.00562341, 0.001, 0.001]),
    ],
)
def test_delta_falls_by_its_schedule(schedule, factors):
    w = bits(100, 100)
    optimizer = HyperMask([w], delta=0.2, mask="top", schedule=schedule, total_steps=4)
    for factor in factors:
        w.grad = gradient(100, 100) * (2 * w.detach() - 1).sign() * gradient(100, 100).sign()  # against every bit
        before = int(optimizer.flips[0])
        optimizer.step()
        assert optimizer.strengths["delta"] == pytest.approx(0.2 * factor, rel=1e-5)
        assert abs(int(optimizer.flips[0]) - before - 2000 * factor) <= 1


def test_masks_depend_on_seed_step_and_tensor_alone():
    """The mask of the second tensor depends on step and seed, but not on whether the first tensor draws a mask."""
    g = torch.ones(50, 50)

    def trained(steps, seed=0, skip_first_gradient=False):
        a, b = torch.nn.Parameter(torch.ones(50, 50)), torch.nn.Parameter(torch.ones(50, 50))
        optimizer = HyperMask([a, b], delta=0.1, mask="random", seed=seed)
        for t in range(steps):
            a.grad, b.grad = (None if skip_first_gradient else g), (None if t < steps - 1 else g)
            optimizer.step()
        return b.detach()

    assert torch.equal(trained(3), trained(3, skip_first_gradient=True))
    assert not torch.equal(trained(3), trained(2))
    assert not torch.equal(trained(3), trained(3, seed=1))


def test_it_keeps_no_state_per_weight():
    for mask in ("random", "top", "ewm", "wpm"):
        w = bits(100, 100)
        _, optimizer = step(w, gradient(100, 100), mask=mask)
        assert sum(v.numel() for state in optimizer.state.values() for v in state.values()) <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"delta": 1.5},
        {"delta": -0.1},
        {"mask": "best"},
        {"lr": 0},
        {"temperature": "hot"},
        {"schedule": "steps"},
        {"schedule": "linear"},
    ],
)
def test_arguments_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        HyperMask([bits(2, 2)], **options)
