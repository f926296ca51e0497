"""Philox's random numbers: known answers, the kernel against the definition in plain torch, and statistics."""

import pytest
import torch
from helpers import on_both, where

from bnn_exp.bits import pack, unpack
from bnn_exp.bits.philox import Philox, integers, uniform, uniform_of, words

pytestmark, WHERE = on_both(), where()


def step(number: int) -> torch.Tensor:
    return torch.tensor(number, device=WHERE)


def test_known_answers_of_random123():
    """The first word is right for counters and key of all zeros and of all ones (kat_vectors of Random123 1.14)."""
    assert int(words(1, 0, step(0), 0)[0]) == 0x6627E8D5
    ones = words_at(0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, -1, 0xFFFFFFFF)
    assert ones == 0x408F276D


def words_at(place: int, key: int, number: int, draw: int) -> int:
    """Returns the word of a single place, by the scalar equations of the paper."""
    c, k = [place, number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF, draw], [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0]


@pytest.mark.parametrize(("key", "number", "draw"), [(0, 0, 0), (2**63 - 25, 2**40 + 3, 2), (123456789012, 7, 1)])
def test_words_are_those_of_the_scalar_equations(key, number, draw):
    assert words(300, key, step(number), draw).tolist() == [words_at(i, key, number, draw) for i in range(300)]


@pytest.mark.usefixtures("triton_runs")
@pytest.mark.parametrize(("key", "number", "draw"), [(0, 0, 0), (2**63 - 25, 2**40 + 3, 2), (123456789012, 7, 1)])
def test_the_kernel_draws_the_numbers_of_the_definition(key, number, draw):
    from bnn_exp.bits.cuda import draws

    expected = uniform_of(words(2500, key, step(number), draw))
    assert torch.equal(draws.uniform(2500, key, step(number), draw), expected)
    assert expected.min() >= 0 and expected.max() < 1 and abs(expected.mean() - 0.5) < 5 * (1 / 12 / 2500) ** 0.5


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
        rules.random(gradient, bits, w.shape[1], [], strength, [], step(number), key, flips)
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
