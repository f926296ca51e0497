"""The kernels of rules against their method `update`. Without a GPU, Triton's interpreter runs the kernels."""

import pytest
import torch
from helpers import compiled, on_both, where

from bnn_exp.bits import pack, unpack
from bnn_exp.bits.factors import ComputedGradient
from bnn_exp.commands.benchmark import launches
from bnn_exp.nn import device, operators
from bnn_exp.optim import CEMA, Bold, Bop, Bop2, Counter, HyperMask, rule

pytest.importorskip("triton")
pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs", "kernels")], where()
SCALES, HEATS = ("tensor", "neuron", "factored"), ("const", "gaussian", "scaled_gaussian")
RULES = {
    "bop": (Bop, {"gamma": 0.3, "tau": 0.01}),
    "bop2": (Bop2, {"gamma": 0.6, "sigma": 0.1, "tau": 0.1}),
    "cema": (CEMA, {"gamma": 0.3, "alpha": 0.2}),
    "bold": (Bold, {"eta": 0.7}),
    "random": (HyperMask, {"delta": 0.3, "mask": "random"}),
    **{f"counter_{scale}": (Counter, {"delta": 0.3, "scale": scale}) for scale in SCALES},
    **{f"counter_tensor of {n} bits": (Counter, {"bits": n, "delta": 0.3}) for n in (1, 2, 3)},
    **{f"top_{scale}": (HyperMask, {"delta": 0.1, "mask": "top", "scale": scale}) for scale in SCALES},
    **{f"{m}_{t}": (HyperMask, {"mask": m, "temperature": t, "lr": 0.5}) for m in ("ewm", "wpm") for t in HEATS},
}  # fmt: skip


@pytest.fixture
def kernels(monkeypatch):
    """Makes rules take every tensor for one on a GPU, and operators launch their kernels, until the test ends."""
    monkeypatch.setattr(device, "on_host", lambda where: False)
    monkeypatch.setattr(operators, "kernels_everywhere", True)


@pytest.fixture
def by_update(monkeypatch):
    """Returns a function: after its call, rules do their steps by `update`."""
    return lambda: monkeypatch.setattr(rule, "kernels_of", lambda kind, h: None)


def trained(name, shape, packed=False, steps=2, gap=0):
    """Trains bits of `shape`. Returns the bits after each step, the last state, and the number of flips.

    The rows of the gradients of packed bits have `gap` more numbers, which belong to no bit.
    """
    kind, options = RULES[name]
    torch.manual_seed(0)
    w = torch.full(shape, 0.5, device=WHERE).bernoulli_()
    p = torch.nn.Parameter(pack(w).to(WHERE) if packed else w, requires_grad=not packed)
    optimizer, seen = kind([p], **options), []
    for _ in range(steps):
        g = torch.randn(shape, device=WHERE)
        optimizer.announce()
        optimizer.flip(p, ComputedGradient(torch.nn.functional.pad(g, (0, gap))[:, : shape[1]]) if packed else g)
        optimizer.count()
        seen.append(unpack(p.data.cpu(), shape) if packed else p.detach().cpu().clone())
    return torch.stack(seen), optimizer.state[p], int(optimizer.flips[0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_a_step_computes_nothing_besides_its_operator(name, packed, monkeypatch):
    """The second step makes no state and converts nothing. Kernels use operators of torch, so the operator is replaced."""
    kind, options = RULES[name]
    w, g = torch.full((8, 16), 0.5, device=WHERE).bernoulli_(), torch.randn(8, 16, device=WHERE)
    p = torch.nn.Parameter(pack(w).to(WHERE) if packed else w, requires_grad=not packed)
    optimizer, operator = kind([p], **options), name.split()[0]
    for _ in range(2):
        optimizer.announce()
        with launches.Launches() as counted:
            optimizer.flip(p, ComputedGradient(g) if packed else g)
        optimizer.count()
        monkeypatch.setattr(torch.ops.bnn_exp, operator, lambda *given: None)
    assert not counted.found


@pytest.mark.parametrize("shape", [(41, 53), (1, 5), (2, 1)])
@pytest.mark.parametrize("name", RULES)
def test_kernels_do_the_step_of_update(name, shape, by_update):
    """Both draw the same numbers. A sum or an average may round differently, which decides no bit of these steps."""
    bits, state, flips = trained(name, shape)
    in_bytes, packed_state, flips_in_bytes = trained(name, shape, packed=True, gap=3)
    by_update()
    expected, expected_state, expected_flips = trained(name, shape)
    assert torch.equal(bits, expected) and torch.equal(in_bytes, expected)
    assert flips == flips_in_bytes == expected_flips and (expected_flips > 0 or shape != (41, 53))
    assert state.keys() == packed_state.keys() == expected_state.keys()
    for key, t in expected_state.items():
        torch.testing.assert_close(state[key], t, rtol=1e-5, atol=1e-6)
        assert torch.equal(packed_state[key], state[key])


def selected(wanted, share):
    """Returns the places of the ⌊share · n⌋ largest numbers above 0 of `wanted`; of equals those at the lowest places."""
    ranked = sorted((i for i, x in enumerate(wanted) if x > 0), key=lambda i: (-wanted[i], i))
    return set(ranked[: int(share * len(wanted))])


CASES = {
    "many ties": torch.arange(70 * 65).remainder(7).sub(3.0).view(70, 65),
    "few sizes": torch.tensor([0.5, -2.0, 1.0, 3.0]).repeat(5, 3),
    "all equal": torch.ones(70, 65),
    "nothing wanted": -torch.ones(5, 5),
    "no gradient": torch.zeros(5, 5),
    "one bit": torch.ones(1, 1),
    "large and small": torch.tensor([[1e-45, 3e38, 1e-38, 1e-30, -1.0, 0.0, 1.0, 1e-45]]),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_top_flips_the_first_of_equal_gradients(case, packed):
    wanted, shape = CASES[case], CASES[case].shape
    w = torch.full(shape, 0.5).bernoulli_()
    for share in (0.0, 0.25, 0.5, 1.0):
        p = torch.nn.Parameter((pack(w) if packed else w.clone()).to(WHERE), requires_grad=not packed)
        optimizer = HyperMask([p], share, "top")
        g = (wanted * (2 * w - 1)).to(WHERE)
        optimizer.announce()
        optimizer.flip(p, ComputedGradient(g) if packed else g)
        after = unpack(p.data.cpu(), shape) if packed else p.detach().cpu()
        flipped = set((after != w).flatten().nonzero().flatten().tolist())
        assert flipped == selected(wanted.flatten().tolist(), share) and int(optimizer.flips[0]) == len(flipped)


def test_top_by_update_flips_the_first_of_equal_gradients(by_update):
    by_update()
    test_top_flips_the_first_of_equal_gradients("many ties", False)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_the_deviation_is_exact_to_the_last_digits(mean):
    """The variance of `wpm` grows by (lr · σ(g))², for gradients of more parts than one, also where their mean is large."""
    w = torch.nn.Parameter(torch.ones(130, 70, device=WHERE))
    optimizer = HyperMask([w], mask="wpm", lr=1.0)
    w.grad = torch.randn(w.shape, device=WHERE) + mean
    optimizer.step()
    sigma = float(w.grad.double().std(correction=0))
    assert float(optimizer.state[w]["variance"].sub(0.01**2)) ** 0.5 == pytest.approx(sigma, rel=1e-6)


class Backwards(Bop):
    def update(self, g, w, h, state, draw):
        return super().update(-g, w, h, state, draw)


def test_a_rule_with_an_update_of_its_own_takes_no_kernels():
    ends = []
    for kind, sign in ((Bop, 1), (Backwards, -1)):
        w = torch.nn.Parameter(torch.ones(4, 6, device=WHERE))
        optimizer = kind([w], gamma=1.0, tau=0.0)
        w.grad = sign * torch.linspace(-1, 1, 24, device=WHERE).view(4, 6)
        optimizer.step()
        ends.append(w.detach())
    assert torch.equal(*ends) and 0 < ends[0].sum() < 24


@pytest.mark.skipif(WHERE == "cuda", reason="the interpreter counts launches")
@pytest.mark.parametrize("name", [name for name in RULES if " " not in name])
def test_launches_are_counted(name, monkeypatch):
    from triton.runtime.interpreter import InterpretedFunction

    kind, options = RULES[name]
    w, g, launched = torch.nn.Parameter(torch.ones(9, 11)), torch.ones(9, 11), []
    optimizer = kind([w], **options)
    optimizer.announce()
    optimizer.flip(w, g)
    for owner, launch in ((InterpretedFunction, "run"), (torch, "zeros")):
        call = getattr(owner, launch)
        monkeypatch.setattr(owner, launch, lambda *a, call=call, **k: (launched.append(call), call(*a, **k))[1])
    optimizer.flip(w, g)
    assert len(launched) == operators.LAUNCHES[name]


STEPS = """
import torch

from bnn_exp.bits.cuda import latents, rules

everything = arguments[0] == "all"
scalar, floats = torch.tensor(0.5), lambda: torch.zeros(24, 40)
STATE = {"bop": ["m"], "bop2": ["m", "v"], "cema": ["m", "h"], "bold": ["a", scalar]}
CONSTANTS = {"bop": [0.5], "bop2": [0.5, 0.5], "cema": [0.5]}


def launch(name, packed, bits=8):
    state = [floats() if isinstance(t, str) else t for t in STATE.get(name, [])]
    constants = CONSTANTS.get(name, [])
    if name.startswith("counter"):
        state, constants = [torch.zeros(24 * 40 * bits // 8, dtype=torch.uint8)] if bits > 1 else [], [bits]
    if name.startswith(("ewm", "wpm")):
        state = [scalar]
    w = torch.zeros(24, 5, dtype=torch.uint8) if packed else floats()
    getattr(rules.STEPS, name)(floats(), w, 40, state, scalar, constants, torch.tensor(3), 7, torch.tensor(0))
    print(name)


if everything:
    x = torch.zeros(77)
    latents.follow(x, scalar, latents.bits_above(x, scalar), torch.tensor(0))
for name in arguments[1:]:
    for packed in (False, True) if everything else (capability == 80,):
        for bits in (1, 2, 4, 8) if everything and name == "counter_tensor" else (2,):
            launch(name, packed, bits)
"""


@pytest.mark.parametrize(
    ("capability", "names"), [(90, "top_tensor"), pytest.param(80, "bold counter_factored", marks=pytest.mark.slow)]
)
def test_the_kernels_compile_for_a_gpu(tmp_path, capability, names):
    """Kernels compile for a compute capability without such a GPU: on packed bits for 8.0, on others for 9.0."""
    assert compiled(tmp_path, capability, STEPS, "one", *names.split()) == names.split()


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_of_every_rule_compile_for_a_gpu(tmp_path, capability):
    names = {name.split()[0] for name in RULES}
    assert set(compiled(tmp_path, capability, STEPS, "all", *names)) == names
