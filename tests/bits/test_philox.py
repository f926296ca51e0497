"""Philox's random numbers: known answers, the kernels against the definition in plain torch, and statistics."""

import math

import pytest
import torch
from helpers import on_both, where

from bnn_exp.bits import pack, unpack
from bnn_exp.bits.cpu import draws as on_cpu
from bnn_exp.bits.philox import Philox, integers, uniform, uniform_of, words
from bnn_exp.nn import operators

pytestmark, WHERE = on_both(), where()


def step(number: int) -> torch.Tensor:
    return torch.tensor(number, device=WHERE)


def test_known_answers_of_random123():
    """All words are right for counters and keys of all zeros, all ones and digits of π (kat_vectors of Random123 1.14)."""
    assert words(4, 0, step(0), 0).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = words_of(0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, -1, 0xFFFFFFFF)
    assert ones == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = words_of(0x243F6A88, 0x299F31D0A4093822, 0x13198A2E85A308D3, 0x03707344)
    assert pi == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def words_of(counter: int, key: int, number: int, draw: int) -> list[int]:
    """Returns the four words of a single counter, by the scalar equations of the paper."""
    c, k = [counter, number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF, draw], [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize(("key", "number", "draw"), [(0, 0, 0), (2**63 - 25, 2**40 + 3, 2), (123456789012, 7, 1)])
def test_words_are_those_of_the_scalar_equations(key, number, draw):
    expected = [word for counter in range(75) for word in words_of(counter, key, number, draw)]
    assert words(298, key, step(number), draw).tolist() == expected[:298]


@pytest.mark.usefixtures("triton_runs")
@pytest.mark.parametrize(("key", "number", "draw"), [(0, 0, 0), (2**63 - 25, 2**40 + 3, 2), (123456789012, 7, 1)])
def test_the_kernel_draws_the_numbers_of_the_definition(key, number, draw):
    from bnn_exp.bits.cuda import draws

    expected = uniform_of(words(2500, key, step(number), draw))
    assert torch.equal(draws.uniform(2500, key, step(number), draw), expected)
    assert expected.min() >= 0 and expected.max() < 1 and abs(expected.mean() - 0.5) < 5 * (1 / 12 / 2500) ** 0.5


@pytest.mark.parametrize("count", [1, 5, 1023, 4099])
@pytest.mark.parametrize(("key", "number", "draw"), [(0, 0, 0), (2**63 - 25, 2**40 + 3, 2)])
def test_the_compiled_form_draws_the_numbers_of_the_definition(key, number, draw, count):
    now = torch.tensor(number)
    expected = uniform_of(words(count, key, now, draw))
    assert torch.equal(on_cpu.uniform(count, key, now, draw), expected)
    for share in (0.0, 0.01, 0.3, 1.0):
        assert torch.equal(on_cpu.below(count, key, now, draw, share), (expected < share).nonzero().flatten())


@pytest.mark.parametrize("pays", [False, True])
@pytest.mark.parametrize("p", [0.001, 0.1, 0.7])
def test_places_below_a_share_are_independent_coins(p, pays, monkeypatch):
    monkeypatch.setattr(operators, "numba_pays", lambda numbers: pays)
    n, repeats = 2000, 300
    draws = torch.zeros(repeats, n)
    for r in range(repeats):
        draws[r, Philox(7, torch.tensor(r)).below(n, p)] = 1
    assert abs(draws.mean().item() - p) < 5 * math.sqrt(p * (1 - p) / (n * repeats))
    # neighbours are uncorrelated, and the first and last places are as likely as any other
    joint = (draws[:, 1:] * draws[:, :-1]).mean().item()
    assert abs(joint - p * p) < 6 * math.sqrt(p * p * (1 - p * p) / (n * repeats)) + 1e-6
    for edge in (draws[:, :20], draws[:, -20:]):
        assert abs(edge.mean().item() - p) < 5 * math.sqrt(p * (1 - p) / (20 * repeats))


def test_draws_follow_the_step_on_the_device():
    now = step(3)
    source = Philox(5, now)
    first, second = uniform(torch.empty(4, 5, device=WHERE), source), uniform(torch.empty(20, device=WHERE), source)
    assert first.shape == (4, 5) and not torch.equal(first.flatten(), second)
    assert torch.equal(Philox(5, now).uniform(20), first.flatten())
    now.fill_(4)
    assert not torch.equal(Philox(5, now).uniform(20), first.flatten())


def test_integers_are_uniform():
    found = integers(7, 7000, Philox(11, step(0)), torch.device(WHERE))
    counts = torch.bincount(found.cpu(), minlength=7).double()
    assert len(counts) == 7 and ((counts - 1000) ** 2 / 1000).sum() < 22.5  # χ² with six degrees of freedom, p = 0.001


@pytest.mark.usefixtures("triton_runs")
def test_a_random_mask_turns_its_share_of_the_wrong_bits():
    """The kernel of the mask draws the numbers of the definition, for the key and the step that it is given."""
    from bnn_exp.bits.cuda import rules

    def flipped(delta, key, number=0):
        bits, strength, flips = pack(w).to(WHERE), torch.tensor(delta, device=WHERE), torch.zeros((), dtype=int, device=WHERE)
        rules.STEPS.random(gradient, bits, w.shape[1], [], strength, [], step(number), key, flips)
        changed = unpack(bits, tuple(w.shape)) != w
        assert flips == changed.sum() and (bits[:, -1] >> ((w.shape[1] - 1) % 8 + 1) == 0).all()
        return changed

    w, key = torch.full((70, 130), 0.5, device=WHERE).bernoulli_(), 1234567890123
    gradient = torch.randn(w.shape, device=WHERE)
    gradient[0] = 0  # a gradient of 0 asks for a bit 1
    wrong, changed = w != (gradient <= 0), flipped(0.3, key)
    assert not changed[~wrong].any()
    assert abs(changed.sum() / wrong.sum() - 0.3) < 5 * (0.21 / wrong.sum()) ** 0.5
    assert torch.equal(flipped(0.3, key), changed)
    assert torch.equal(flipped(1.0, 5), wrong) and not flipped(0.0, 5).any()
    for other in (flipped(0.3, key + 1), flipped(0.3, key, 1)):
        assert abs((changed & other).sum() / wrong.sum() - 0.09) < 5 * (0.09 * 0.91 / wrong.sum()) ** 0.5
    chosen = Philox(key, step(0)).uniform(w.numel()).view(w.shape) < 0.3
    assert torch.equal(changed, chosen & wrong)
