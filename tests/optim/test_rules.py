"""Compares rules that have a state with their equations, scalar by scalar; tests properties of all rules, and the registry."""

import ast
import inspect
import math
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, drawn, plain_config
from omegaconf import OmegaConf

from bnn_exp.config.rules import RULES
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import binary_parameters, verify_binary
from bnn_exp.optim import CEMA, Bold, Bop, Bop2, Counter, HyperMask, LatentAdam, LatentSGD, build_binary
from bnn_exp.optim.counter import pack, unpack
from bnn_exp.optim.gradients import scaled

STEPS = 60


def coins(*shape):
    return torch.nn.Parameter(
        torch.full(shape, 0.5, dtype=torch.float64).bernoulli_(generator=torch.Generator().manual_seed(1))
    )


def gradients(*shape, scale=1.0):
    """Returns random gradients. Each weight has its own mean, so some weights settle and some never do."""
    rng = torch.Generator().manual_seed(2)
    means = torch.randn(shape, generator=rng, dtype=torch.float64) / 3
    return [scale * (means + torch.randn(shape, generator=rng, dtype=torch.float64)) for _ in range(STEPS)]


def fall(schedule, t):
    """Returns the factor of the schedule at step t of STEPS."""
    return {"constant": 1, "linear": 1 - t / STEPS, "cosine": (1 + math.cos(math.pi * t / STEPS)) / 2}[schedule]


def bop(g, t, s, memory, gamma=0.2, tau=0.1):
    gamma *= fall("cosine", t)
    memory["m"] = (1 - gamma) * memory.get("m", 0) + gamma * g
    return memory["m"] * s > tau


def bop2(g, t, s, memory, gamma=0.2, sigma=0.1, tau=0.3):
    gamma *= fall("linear", t)
    memory["m"] = (1 - gamma) * memory.get("m", 0) + gamma * g
    memory["v"] = (1 - sigma) * memory.get("v", 0) + sigma * g * g
    return memory["m"] * s / (math.sqrt(memory["v"]) + 1e-10) > tau


def cema(g, t, s, memory, gamma=0.3, alpha=0.2):
    alpha *= fall("linear", t)
    memory["m"] = (1 - gamma) * memory.get("m", 0) + gamma * g
    memory["h"] = (1 - alpha) * memory.get("h", 0) + alpha * memory["m"]
    return memory["h"] * s > 0


@pytest.mark.parametrize(("rule", "equations", "options"), [
    (Bop, bop, {"gamma": 0.2, "tau": 0.1, "schedule": "cosine"}),
    (Bop2, bop2, {"gamma": 0.2, "sigma": 0.1, "tau": 0.3, "schedule": "linear"}),
    (CEMA, cema, {"gamma": 0.3, "alpha": 0.2, "schedule": "linear"}),
])  # fmt: skip
def test_a_rule_with_averages_is_its_equations_at_every_step(rule, equations, options):
    w = coins(5, 3, 2, 2)
    optimizer, memories = rule([w], total_steps=STEPS, **options), [{} for _ in range(60)]
    expected, flips = w.flatten().tolist(), 0
    for t, g in enumerate(gradients(5, 3, 2, 2)):
        for k, x in enumerate(g.flatten().tolist()):
            if equations(x, t, 2 * expected[k] - 1, memories[k]):
                expected[k], flips = 1 - expected[k], flips + 1
        w.grad = g
        optimizer.step()
        assert w.flatten().tolist() == expected
    assert int(optimizer.flips[0]) == flips > 60


def test_bold_is_its_equations_at_every_step():
    """β couples the weights of a tensor, so the test computes all of them together."""
    w, eta = coins(6, 10), 1.0
    optimizer = Bold([w], eta, schedule="linear", total_steps=STEPS)
    bits, a, beta, flips = w.flatten().tolist(), [0.0] * 60, 1.0, 0
    for t, g in enumerate(gradients(6, 10)):
        a = [beta * x + eta * fall("linear", t) * y for x, y in zip(a, g.flatten().tolist(), strict=True)]
        flip = [x * (2 * b - 1) >= 1 for x, b in zip(a, bits, strict=True)]
        a = [0.0 if f else x for f, x in zip(flip, a, strict=True)]
        bits = [1 - b if f else b for f, b in zip(flip, bits, strict=True)]
        beta, flips = 1 - sum(flip) / 60, flips + sum(flip)
        w.grad = g
        optimizer.step()
        assert w.flatten().tolist() == bits
    assert int(optimizer.flips[0]) == flips > 60


@pytest.mark.parametrize("n", range(1, 9))
def test_a_counter_is_its_equation_at_every_step(n):
    """The test draws from the same (seed, step, tensor). Another tensor, without gradients, does not shift the draws."""
    other, w, delta, half = coins(3, 3), coins(7, 9), 0.3, 2 ** (n - 1)
    optimizer = Counter([other, w], n, delta, schedule="cosine", total_steps=STEPS, seed=4)
    c = [0 if b else -1 for b in w.flatten().tolist()]
    seen = set()
    for t, g in enumerate(gradients(7, 9, scale=1e-5)):
        values = g.flatten().tolist()
        mean = sum(values) / 63
        sigma = math.sqrt(sum((x - mean) ** 2 for x in values) / 63)
        chance = drawn(63, seed=4, tensor=1, step=t).tolist()
        for k, (x, r) in enumerate(zip(values, chance, strict=True)):
            u = delta * fall("cosine", t) * half * x / sigma
            c[k] = min(max(c[k] - math.floor(u + r), -half), half - 1)
        w.grad = g
        optimizer.step()
        assert w.flatten().tolist() == [float(x >= 0) for x in c]
        seen |= set(c)
    assert seen == set(range(-half, half)) or n == 8  # all counts occur; 256 are too many to occur in this test
    assert {-half, half - 1} <= seen and int(optimizer.flips[1]) > 60


@pytest.mark.parametrize("n", [1, 4, 8])
def test_a_counter_moves_by_u_on_average(n):
    """40,000 weights share each gradient and take one step from counters next to 0. Bounds are five standard deviations."""
    count, half, delta = 40_000, 2 ** (n - 1), 0.03 if n == 8 else 0.2
    g = torch.tensor([0.3, -1.2, 2.0, -0.1, 0.0])
    w = torch.nn.Parameter((g > 0).float().repeat(count, 1))  # the gradient is against every bit
    optimizer = Counter([w], n, delta)
    w.grad = g.repeat(count, 1)
    optimizer.step()
    sigma = float(((g - g.mean()) ** 2).mean().sqrt())
    first = w.new_tensor([0.0 if x > 0 else -1.0 for x in g])
    c = w.detach() - 1 if n == 1 else unpack(optimizer.state[w]["counters"], n, w.numel()).view_as(w).float() - half
    moved = (first - c).mean(0)
    for x, y in zip(g.tolist(), moved.tolist(), strict=True):
        u = delta * half * x / sigma
        p = abs(u) - math.floor(abs(u))
        assert abs(y - u) <= 5 * math.sqrt(p * (1 - p) / count) + 1e-5
        if n == 1:  # a counter of one bit is a hypermask: it flips with probability δ|g|/σ
            assert abs(y) == pytest.approx(delta * abs(x) / sigma, abs=5 * math.sqrt(p * (1 - p) / count) + 1e-6)


@pytest.mark.parametrize(("rule", "options"), [
    (Bop, {"gamma": 1.0, "tau": 0.0}),
    (Bop2, {"gamma": 1.0, "sigma": 0.5, "tau": 0.0}),
    (CEMA, {"gamma": 1.0, "alpha": 1.0}),
    (Counter, {"bits": 1, "delta": 1e12}),
    (Counter, {"bits": 8, "delta": 1e12}),
    (HyperMask, {"delta": 1.0, "mask": "top"}),
])  # fmt: skip
def test_every_rule_has_the_plain_sign_rule_for_a_limit(rule, options):
    matrix, vector = coins(20, 30), coins(30)
    optimizer = rule([matrix, vector], **options)
    for g in gradients(20, 30)[:10]:
        matrix.grad, vector.grad = g, g[3]
        optimizer.step()
        assert torch.equal(matrix, (g < 0).double()) and torch.equal(vector, (g[3] < 0).double())


def test_bold_begins_as_the_plain_sign_rule():
    """Bold equals the sign rule in its first step only: its sums for the weights that do not flip remain."""
    w, g = coins(20, 30), gradients(20, 30)[0]
    optimizer = Bold([w], eta=1e12)
    w.grad = g
    optimizer.step()
    assert torch.equal(w, (g < 0).double())


def test_counters_lie_in_their_byte_lowest_first():
    assert pack(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist() == [1 + 2 * 16, 15]
    assert pack(torch.tensor([1, 2, 3, 0, 3], dtype=torch.uint8), 2).tolist() == [1 + 2 * 4 + 3 * 16, 3]
    for n in range(1, 9):
        numbers = torch.randint(0, 2**n, (1001,), dtype=torch.uint8)
        assert torch.equal(unpack(pack(numbers, n), n, 1001), numbers)


@pytest.mark.parametrize(("rule", "options", "bits_per_weight"), [
    *((Counter, {"bits": n}, bits) for n, bits in ((1, 0), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8))),
    *((HyperMask, {"mask": mask}, 0) for mask in ("random", "top", "ewm", "wpm")),
    (Bop, {}, 32), (Bop2, {}, 64), (CEMA, {}, 64), (Bold, {}, 32),
    (LatentSGD, {}, 64), (LatentAdam, {}, 96),
])  # fmt: skip
def test_the_bytes_of_state(rule, options, bits_per_weight):
    w = torch.nn.Parameter(torch.ones(100, 80))
    optimizer = rule([w], **options)
    w.grad = torch.randn(100, 80)
    optimizer.step()
    assert 0 <= optimizer.state_bytes - 8000 * bits_per_weight // 8 <= 4  # one scalar per tensor: σ², β or Adam's step counter


def networks():
    yield MLP(2 * 8 * 8, 2, 16, 3)
    yield BNCVLNet((2, 8, 8), 2, (8, 8), 1, dense=(16,), weights="bits")


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.trains == ("bits",)])
def test_every_rule_trains_linear_and_convolution(name):
    """Every rule, with the settings of conf/optimizer/NAME.yaml, learns to separate two textures."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(128) % 2
    x = torch.rand(128, 2, 8, 8, generator=rng)
    x[labels == 1, :, ::2] *= 0.3
    values = plain_config(f"optimizer={name}")["optimizer"]
    for network in networks():
        torch.manual_seed(0)
        for p in network.parameters():
            if p.dim() > 1:
                p.data.bernoulli_(0.5)
        settings = RULES[name].settings(**values)
        rule = build_binary(settings, network, 128, 100, 0)
        real = [p for p in network.parameters() if not any(p is b for _, b in binary_parameters(network))]
        adam = torch.optim.Adam(real, 0.01) if real else None
        for _ in range(100):
            loss = F.cross_entropy(network(x), labels)
            network.zero_grad()
            loss.backward()
            rule.step()
            adam and adam.step()
        assert (network.eval()(x).argmax(1) == labels).float().mean() > 0.9
        assert sum(verify_binary(network).values()) > 0
        assert all(int(flips) > 0 for flips in rule.flips)


@pytest.mark.parametrize("options", [
    (Counter, {"bits": 9}), (Counter, {"delta": -1.0}), (Bop, {"gamma": 1.5}), (Bop2, {"sigma": -1.0}), (CEMA, {"alpha": 2.0}),
    (Bold, {"eta": 0.0}), (Bop, {"tau": -1e-6}), (Bop, {"schedule": "steps"}), (CEMA, {"schedule": "linear"}),
])  # fmt: skip
def test_arguments_out_of_range_are_named(options):
    rule, arguments = options
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}="):
        rule([coins(2, 2)], **arguments)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_short_and_its_yaml_has_its_settings(name):
    values = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/optimizer/{name}.yaml"))
    assert list(values) == list(RULES[name].settings.__dataclass_fields__) and values["name"] == name
    (node,) = ast.parse(inspect.getsource(RULES[name].load())).body
    text = [n for n in ast.walk(node) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    code = node.end_lineno - sum(n.end_lineno - n.lineno + 1 for n in text)
    assert code <= 60


@pytest.mark.slow
def test_the_page_about_a_rule_of_ones_own(tmp_path, summary):
    """The code of the page is a plugin: it runs, learns and is checked like the rules of the package."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/add_a_rule.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) < 40
    (tmp_path / "patient.py").write_text(code)

    def run(*arguments):
        command = [sys.executable, "patient.py", "optimizer=patient", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    few = ("trainer.epochs=8", "trainer.batch_size=64", "model.hidden_size=128", "engine.threads=1", "hydra.run.dir=run")
    done = run("optimizer.patience=2", *few)
    result = summary(tmp_path / "run")
    assert done.returncode == 0 and result["binary_verified"] and result["test_accuracy"] > 80, done.stderr
    assert result["state_bytes_per_weight"] == 1
    bad = run("optimizer.patience=-1")
    assert bad.returncode == 2 and "optimizer.patience=-1" in bad.stderr and "≥ 1" in bad.stderr


def test_gradients_in_units_of_their_rows_and_columns():
    """The scale `factored` removes a product of row and column sizes entirely: the rest has size 1."""
    rng = torch.Generator().manual_seed(0)
    sign = torch.where(torch.rand(6, 9, generator=rng) < 0.5, -1.0, 1.0)
    rows, columns = torch.rand(6, 1, generator=rng) + 0.1, torch.rand(1, 9, generator=rng) + 0.1
    columns[0, 4] = 0  # an input that is always 0
    for size in (1.0, 1e-12):
        torch.testing.assert_close(scaled(size * sign * rows * columns, "factored"), sign * (columns > 0))
    g = sign * rows
    torch.testing.assert_close(scaled(g, "neuron"), sign)
    for scale in ("tensor", "neuron", "factored"):
        torch.testing.assert_close(scaled(g[:1] * 3, scale), g[:1] / g[0].std(correction=0))
        assert scaled(torch.zeros(4, 5), scale).abs().sum() == 0


def test_top_compares_gradients_in_the_units_it_is_told():
    """One neuron's gradients are a thousand times those of the others. All gradients are against the bits."""
    g = torch.rand(8, 50, generator=torch.Generator().manual_seed(0)) + 0.5
    g[2] *= 1000
    flipped = {}
    for scale in ("tensor", "neuron", "factored"):
        w = torch.nn.Parameter(torch.ones(8, 50))
        optimizer = HyperMask([w], delta=0.125, mask="top", scale=scale)
        w.grad = g
        optimizer.step()
        flipped[scale] = (w == 0).sum(1).tolist()
        assert sum(flipped[scale]) == 50
    assert flipped["tensor"] == [0, 0, 50, 0, 0, 0, 0, 0]
    assert max(flipped["neuron"]) < 15 and max(flipped["factored"]) < 15
