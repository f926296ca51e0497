"""Tests rules in uses that torch's optimizers have: later groups, LR schedulers, copies, wrong weights, averages."""

import copy
import math
import pickle
import re

import pytest
import torch
from helpers import ROOT, drawn
from torch.optim import lr_scheduler, swa_utils

from bnn_exp import AveragedModel, binary_parameters, check_ownership, latent_optimizer, real_parameters, verify_binary
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import NotBinary
from bnn_exp.optim import CEMA, Bold, Bop, Bop2, Counter, HyperMask, LatentAdam, LatentSGD

RULES = [
    (HyperMask, "delta", {"mask": "top"}),
    (HyperMask, "delta", {"mask": "random"}),
    (HyperMask, "lr", {"mask": "ewm"}),
    (Counter, "delta", {}),
    (Bop, "gamma", {}),
    (Bop2, "gamma", {}),
    (CEMA, "alpha", {}),
    (Bold, "eta", {}),
]
LATENTS = [LatentAdam, LatentSGD, latent_optimizer(torch.optim.RMSprop)]


def bits(*shape, seed=0):
    return torch.nn.Parameter(torch.empty(shape).fill_(0.5).bernoulli_(generator=torch.Generator().manual_seed(seed)))


def latents(*shape):
    return torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def stepped(optimizer, steps=1, seed=0):
    """Takes `steps` steps with random gradients, the same ones for each `seed`."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in optimizer.tensors():
            p.grad = torch.randn(p.shape, generator=rng)
        optimizer.step()


def test_a_group_that_is_added_later_counts_its_own_steps():
    a, b = bits(6, 50), bits(4, 50, seed=1)
    rule = HyperMask([a], 0.2, mask="random", seed=7)
    stepped(rule, 3)
    rule.add_param_group({"params": [b]})
    before = b.detach().clone()
    a.grad, b.grad = torch.ones_like(a), (before - 0.5)  # the gradient of b is against every bit
    rule.step()
    selected = drawn(200, seed=7, tensor=1, step=0) < 0.2  # step 0 of its group
    assert torch.equal((b.detach() != before).flatten(), selected)
    assert int(rule.flips[1]) == selected.sum() > 10 and len(rule.flips) == 2
    assert [group["step"] for group in rule.param_groups] == [4, 1]


def test_a_later_group_has_settings_and_a_schedule_of_its_own():
    rule = Counter([bits(3, 8)], delta=0.1, schedule="linear", total_steps=10)
    stepped(rule, 5)
    rule.add_param_group({"params": [bits(3, 8, seed=1)], "delta": 0.3, "total_steps": 4})
    rule.add_param_group({"params": bits(3, 8, seed=2), "lr": 0.2, "schedule": "constant"})
    assert [group["lr"] for group in rule.param_groups] == pytest.approx([0.05, 0.3, 0.2])
    stepped(rule, 2)
    assert [group["lr"] for group in rule.param_groups] == pytest.approx([0.03, 0.15, 0.2])
    assert rule.state_bytes == 3 * 24


@pytest.mark.parametrize(("group", "said"), [
    ({"delta": -1.0}, r"delta=-1\.0"),
    ({"lr": -1.0}, r"delta=-1\.0"),
    ({"scale": "neurons"}, "scale='neurons'"),
    ({"schedule": "linear"}, "needs total_steps"),
    ({"schedule": "often"}, "schedule='often'"),
])  # fmt: skip
def test_a_group_that_can_not_be_is_not_added(group, said):
    rule = Counter([bits(2, 3)])
    with pytest.raises(ValueError, match=said):
        rule.add_param_group({"params": [bits(2, 3)]} | group)
    assert len(rule.param_groups) == len(rule.flips) == 1
    stepped(rule)


@pytest.mark.parametrize(("kind", "strength", "options"), RULES)
def test_lr_is_the_strength(kind, strength, options):
    rule = kind([bits(4, 5)], **{strength: 0.5}, schedule="cosine", total_steps=8, **options)
    (group,) = rule.param_groups
    stepped(rule, 4)
    assert group["lr"] == group.get("lr") == pytest.approx(0.25) and "lr" in group  # the coming step's strength
    group["lr"] = 0.125
    stepped(rule, 2)
    assert group["lr"] == rule.strengths[strength] == 0.125 and group["schedule"] == "constant"
    assert dict(group)[strength] == 0.125


@pytest.mark.parametrize("kind", LATENTS)
def test_lr_of_latents_is_the_learning_rate(kind):
    optimizer = kind([latents(4, 5)], lr=0.5, schedule="cosine", total_steps=8)
    (group,) = optimizer.param_groups
    stepped(optimizer, 4)
    assert group["lr"] == pytest.approx(0.25) and optimizer.strengths["lr"] > 0.25
    group["lr"] = 0.125
    stepped(optimizer, 2)
    assert group["lr"] == optimizer.strengths["lr"] == 0.125


@pytest.mark.parametrize(("key", "value"), [("lr", 1.5), ("delta", -0.1), ("lr", math.nan), ("scale", "row")])
def test_a_value_that_can_not_be_is_refused_at_the_step(key, value):
    w = bits(4, 5)
    rule = HyperMask([w], 0.1)
    stepped(rule)
    before = w.detach().clone()
    rule.param_groups[0][key] = value
    with pytest.raises(ValueError, match=f"{'delta' if key == 'lr' else key}={value!r}"):
        stepped(rule)
    assert torch.equal(w, before)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=12, cycle_momentum=False),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, 3, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.8)], [3]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=4),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", [HyperMask, Bop, LatentSGD, latent_optimizer(torch.optim.RMSprop)])
def test_schedulers_of_torch_do_what_they_do_to_a_learning_rate(kind, name):
    """Over ten steps, the strengths equal the learning rates of torch's own SGD."""
    first = 0.1
    weight = bits(3, 4) if kind in (HyperMask, Bop) else latents(3, 4)
    ours = kind([weight], first)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], first)
    schedules = [SCHEDULERS[name](optimizer) for optimizer in (ours, theirs)]
    for step in range(10):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-12)
        stepped(ours)
        theirs.step()
        for schedule in schedules:
            schedule.step(*([float(step > 2)] if name == "ReduceLROnPlateau" else []))
    assert ours.param_groups[0]["lr"] != first or name == "CosineAnnealingWarmRestarts"


def test_a_scheduled_delta_is_the_one_that_flips():
    """The mask `top` selects δ·N weights. All gradients are against the bits, so all of them flip."""
    w = bits(10, 100)
    rule = HyperMask([w], 0.1)
    schedule, flips = lr_scheduler.LambdaLR(rule, lambda t: 1 / (t + 1)), []
    for _ in range(4):
        before = int(rule.flips[0])
        w.grad = (2 * w.detach() - 1) * torch.rand(w.shape)
        rule.step()
        schedule.step()
        flips.append(int(rule.flips[0]) - before)
    assert flips == [100, 50, 33, 25]


@pytest.mark.parametrize(("kind", "strength", "options"), RULES)
def test_copies_and_states_go_on_as_the_original(kind, strength, options):
    w = bits(6, 9)
    rule = kind([w], **options, schedule="linear", total_steps=20)
    rule.add_param_group({"params": [bits(5, 7, seed=1)]})
    stepped(rule, 3)
    copies = [copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))]
    fresh = kind([torch.nn.Parameter(w.detach().clone())], **options)
    fresh.add_param_group({"params": [torch.nn.Parameter(rule.tensors()[1].detach().clone())]})
    fresh.load_state_dict(rule.state_dict())
    for other in (rule, *copies, fresh):
        stepped(other, 4, seed=1)
    for other in (*copies, fresh):
        assert all(torch.equal(a, b) for a, b in zip(rule.tensors(), other.tensors(), strict=True))
        assert other.param_groups[0]["lr"] == rule.param_groups[0]["lr"] and other.strengths == rule.strengths
    assert [int(n) for n in copies[0].flips] == [int(n) for n in rule.flips]


@pytest.mark.parametrize("kind", [LatentAdam, LatentSGD])
def test_a_state_of_an_earlier_version_of_latents_is_taken_up(kind):
    """A state of an earlier version has `lr` in its groups, beside the first value."""
    one, other = (kind([latents(4, 6)], lr=0.3, schedule="cosine", total_steps=9) for _ in range(2))
    stepped(one, 4)
    state = copy.deepcopy(one.state_dict())
    state["param_groups"][0]["lr"] = 0.3 * 0.5  # the rate of the last step: any value must do
    other.load_state_dict(state)
    other.tensors()[0].data.copy_(one.tensors()[0])
    for optimizer in (one, other):
        stepped(optimizer, 3, seed=1)
    assert torch.equal(one.tensors()[0], other.tensors()[0]) and one.strengths == other.strengths


@pytest.mark.parametrize(("kind", "strength", "options"), RULES)
def test_weights_that_are_no_bits_are_refused_by_place(kind, strength, options):
    good, bad = bits(2, 3), torch.nn.Parameter(torch.zeros(2, 3))
    bad.data[1, 2] = 0.5
    with pytest.raises(ValueError, match=r"tensor 1\[1, 2\] is 0\.5: a binary weight must be 0 or 1"):
        kind([good, bad], **options)
    with pytest.raises(NotBinary, match=r"theirs\[1, 2\] is 0\.5"):
        kind([("ours", good), ("theirs", bad)], **options)
    rule = kind([good], **options)
    with pytest.raises(NotBinary, match=r"tensor 1\[1, 2\] is 0\.5"):
        rule.add_param_group({"params": [bad]})
    assert len(rule.param_groups) == len(rule.flips) == 1
    stepped(rule)


@pytest.mark.parametrize("change", [
    lambda w: w.mul_(0.5),
    lambda w: w.copy_(torch.full_like(w, -1)),
    lambda w: setattr(w, "data", torch.full_like(w, torch.nan)),
])  # fmt: skip
def test_weights_that_another_hand_changed_are_refused_at_the_step(change):
    w = bits(4, 4)
    rule = HyperMask([w])
    stepped(rule, 2)
    with torch.no_grad():
        change(w)
    with pytest.raises(NotBinary, match=r"tensor 0\[\d, \d\] is (0\.5|-1|nan)"):
        stepped(rule)


@pytest.mark.parametrize("kind", LATENTS)
def test_a_rule_of_latents_refuses_bits(kind):
    with pytest.raises(ValueError, match="tensor 1 holds bits"):
        kind([latents(3, 3), bits(4, 4)], lr=0.1)
    optimizer = kind([latents(3, 3)], lr=0.1)
    with pytest.raises(ValueError, match="tensor 1 holds bits"):
        optimizer.add_param_group({"params": [bits(4, 4)]})
    assert len(optimizer.param_groups) == len(optimizer.flips) == 1
    kind([torch.nn.Parameter(torch.zeros(3)), latents(2, 2)], lr=0.1)  # zeros are allowed: biases begin as zeros


def test_ownership_knows_who_can_train_bits():
    network = MLP(4, 2, 3, 2)
    binary, real = list(binary_parameters(network)), [p for _, p in real_parameters(network)]
    check_ownership(network, [HyperMask(binary), torch.optim.Adam(real)])
    with pytest.raises(ValueError, match=r"layers\.0\.weight holds bits and is trained by Adam"):
        check_ownership(network, [torch.optim.Adam(network.parameters())])


def test_an_average_stays_binary():
    """The averaged model has the bits of the network; its real parameters equal torch's average."""
    network = MLP(16, 3, 8, 2)
    average = swa_utils.get_ema_multi_avg_fn(0.5)
    ours, theirs = AveragedModel(network, multi_avg_fn=average), swa_utils.AveragedModel(network, multi_avg_fn=average)
    for step in range(3):
        with torch.no_grad():
            for (_, p), sign in zip(binary_parameters(network), (1, 1), strict=True):
                p.copy_((p + sign) % 2)
            for _, p in real_parameters(network):
                p.add_(step + 1.0)
        ours.update_parameters(network)
        theirs.update_parameters(network)
    assert verify_binary(ours.module) == verify_binary(network)
    with pytest.raises(NotBinary, match="AveragedModel"):
        verify_binary(theirs.module)
    for (name, mine), (_, p), (_, q) in zip(*(real_parameters(n) for n in (ours.module, theirs.module, network)), strict=True):
        assert torch.equal(mine, p) and not torch.equal(mine, q), name


def test_the_loop_of_the_docs_runs():
    (program,) = re.findall(r"```python\n(import torch.*?)```", (ROOT / "docs/rules.md").read_text(), re.DOTALL)
    names = {}
    exec(program, names)
    groups = names["rule"].param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0, 0], abs=1e-9) and sum(map(int, names["rule"].flips)) > 0
    assert names["rule"].name(1) == "layers.1.weight"
