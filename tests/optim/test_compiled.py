"""The compiled forms of rules on a CPU against their method `update`: equal to the bit, at odd sizes."""

import pytest
import torch

from bnn_exp.bits import pack, unpack
from bnn_exp.bits.factors import ComputedGradient
from bnn_exp.nn import operators
from bnn_exp.optim import CEMA, Bold, Bop, Bop2, Counter, HyperMask, rule
from bnn_exp.optim.gradients import erf

SCALES, HEATS = ("tensor", "neuron", "factored"), ("const", "gaussian", "scaled_gaussian")
RULES = {
    "bop": (Bop, {"gamma": 0.3, "tau": 0.01}),
    "bop with γ above ½": (Bop, {"gamma": 0.7, "tau": 0.01}),
    "bop2": (Bop2, {"gamma": 0.6, "sigma": 0.1, "tau": 0.1}),
    "cema": (CEMA, {"gamma": 0.3, "alpha": 0.2}),
    "bold": (Bold, {"eta": 0.7}),
    "random": (HyperMask, {"delta": 0.3, "mask": "random"}),
    "random by entries": (HyperMask, {"delta": 0.2, "mask": "random"}),
    **{f"counter_{scale}": (Counter, {"delta": 0.3, "scale": scale}) for scale in SCALES},
    **{f"counter of {n} bits": (Counter, {"bits": n, "delta": 0.3}) for n in (1, 2, 3)},
    **{f"top_{scale}": (HyperMask, {"delta": 0.1, "mask": "top", "scale": scale}) for scale in SCALES},
    **{f"{m}_{t}": (HyperMask, {"mask": m, "temperature": t, "lr": 0.5}) for m in ("ewm", "wpm") for t in HEATS},
}  # fmt: skip
SHAPES = {(41, 53): 200, (3, 1030): 5, (1, 5): 5, (2, 1): 5}  # steps of each shape


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    """Lets small tensors too take the compiled form."""
    monkeypatch.setattr(operators, "numba_pays", lambda numbers: True)


def trained(name, shape, packed=False, steps=200, rounded=False, gap=3):
    """Trains bits of `shape`. Returns the bits after each step, the last state, and the number of flips.

    Args:
        rounded: gradients are rounded to bfloat16; those of packed bits have this dtype.
        gap: the rows of the gradients of packed bits have so many more numbers, which belong to no bit.
    """
    kind, options = RULES[name]
    rng = torch.Generator().manual_seed(0)
    w = torch.full(shape, 0.5).bernoulli_(generator=rng)
    p = torch.nn.Parameter(pack(w) if packed else w, requires_grad=not packed)
    optimizer, seen = kind([p], **options), []
    for _ in range(steps):
        g = torch.randn(shape, generator=rng)
        g = g.bfloat16() if rounded else g
        optimizer.announce()
        wide = torch.nn.functional.pad(g, (0, gap))[:, : shape[1]]
        optimizer.flip(p, ComputedGradient(wide) if packed else g.float())
        optimizer.count()
        seen.append(unpack(p.data, shape) if packed else p.detach().clone())
    return torch.stack(seen), optimizer.state[p], int(optimizer.flips[0])


def same(one, other):
    """Checks that two results of `trained` are equal to the bit."""
    assert torch.equal(one[0], other[0]) and one[2] == other[2] and one[1].keys() == other[1].keys()
    for key, t in other[1].items():
        assert torch.equal(one[1][key], t), key


def by_update(patch, *arguments, **options):
    """Returns the result of `trained` by a rule's method `update`."""
    with patch.context() as only:
        only.setattr(rule, "kernels_of", lambda kind, h: None)
        return trained(*arguments, **options)


@pytest.mark.parametrize("name", RULES)
def test_the_compiled_form_does_two_hundred_steps_of_update(name, monkeypatch):
    for shape, steps in SHAPES.items():
        expected = by_update(monkeypatch, name, shape, steps=steps)
        same(trained(name, shape, steps=steps), expected)
        same(trained(name, shape, packed=True, steps=steps), expected)
        assert expected[2] > 100 or shape != (41, 53)


@pytest.mark.parametrize("name", RULES)
def test_gradients_may_be_bfloat16(name, monkeypatch):
    """The step of a rounded gradient is the step of its float32 value."""
    expected = by_update(monkeypatch, name, (37, 21), steps=5, rounded=True)
    same(trained(name, (37, 21), packed=True, steps=5, rounded=True), expected)


@pytest.mark.parametrize("name", ["counter_factored", "counter of 2 bits", "bold", "top_neuron", "ewm_gaussian"])
def test_threads_change_no_bit(name, monkeypatch):
    """The tensor is large enough for threads; its rows of counters begin within bytes."""
    shape = 1001, 67
    expected = trained(name, shape, packed=True, steps=3)
    for threads in (2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        same(trained(name, shape, packed=True, steps=3), expected)


@pytest.mark.parametrize("name", ["bop", "bold"])
def test_a_state_of_another_dtype_counts(name):
    """Such a state remains where a network trains in float64, and then in float32."""
    kind, options = RULES[name]
    trained = []
    for dtype in (torch.float32, torch.float64):
        p = torch.nn.Parameter(torch.ones(9, 20))
        optimizer = kind([p], **options)
        for seed in range(9):
            optimizer.flip(p, torch.randn(9, 20, generator=torch.Generator().manual_seed(seed)))
            optimizer.state[p].update({key: t.to(dtype) for key, t in optimizer.state[p].items()})
        trained.append(p.detach())
    assert torch.equal(*trained) and trained[0].any()


def test_a_small_tensor_takes_the_definition_until_numba_is_loaded(monkeypatch):
    """The definition of the operator, by torch, and the compiled form give the same bits."""
    for name in RULES:
        expected = trained(name, (19, 23), steps=5)
        with monkeypatch.context() as only:
            only.setattr(operators, "numba_pays", lambda numbers: False)
            same(trained(name, (19, 23), steps=5), expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_top_flips_the_first_of_equal_gradients(scale, packed):
    """A row of eight gradients repeats: of 64 equal keys, those at the lowest places flip."""
    g = torch.tensor([1.0, 2.0, -3.0, 0.0, 2.0, 2.0, 5.0, 1e-45]).repeat(64, 1)
    w = (torch.arange(8) < 7).float().repeat(64, 1)
    p = torch.nn.Parameter(pack(w) if packed else w.clone(), requires_grad=not packed)
    HyperMask([p], 70 / 512, "top", scale=scale).flip(p, ComputedGradient(g) if packed else g)
    flipped = (unpack(p.data, (64, 8)) if packed else p.detach()) != w
    expected = torch.zeros(64, 8, dtype=torch.bool)
    expected[:, 6] = True
    places = [(r, c) for r in range(64) for c in ((1, 4, 5) if scale != "factored" else ())]
    for r, c in places[:6]:
        expected[r, c] = True
    if scale != "factored":  # with `factored` the sizes of columns make all wanted keys equal
        assert torch.equal(flipped, expected)
    assert flipped.sum() == 70


def test_the_error_function_is_exact_to_the_last_digits():
    x = torch.cat([torch.linspace(0, 5, 4001), torch.logspace(-30, 0, 500)])
    torch.testing.assert_close(erf(x).double(), torch.erf(x.double()), rtol=5e-7, atol=0)
