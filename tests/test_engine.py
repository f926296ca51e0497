"""The packed engine against the dense one and against sums in float64: same draws, same flips but for the rounding of fp32."""

import os
import signal

import pytest
import torch
from conftest import settings_of, trainer_of

from bnn_exp import engine
from bnn_exp.bits import bits_sha256
from bnn_exp.bits.training import BitFactors, PixelFactors, bit_columns, bit_sums, input_gradient, pixel_columns
from bnn_exp.optim import Rule
from bnn_exp.trainer import Trainer

RANDOM = ("optimizer=hypermask", "optimizer.mask=random", "trainer.epochs=3")
UNIT = 2.0**-24  # of fp32: half the distance of 1 to the next number
SHAPES = [(16, 32, 32), (1, 3, 5), (37, 10, 64), (1030, 33, 100), (2500, 64, 96)]  # rows, neurons, inputs


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def bits(*shape):
    return torch.full(shape, 0.5).bernoulli_(generator=torch.Generator().manual_seed(2))


def some_positions(n):
    return (torch.rand(n, generator=torch.Generator().manual_seed(3)) < 0.3).nonzero().squeeze(1)


def near(found, exact, terms, rows):
    """Within the bound of any order of summation: rows · u · Σ|terms| (Higham 2002, eq. 4.4)."""
    return ((found.double() - exact).abs() <= (rows + 2) * UNIT * terms).all()


@pytest.mark.parametrize(("rows", "neurons", "inputs"), SHAPES)
@pytest.mark.parametrize("zero", [0.0, -1.0])
def test_entries_are_those_of_the_whole_gradient(rows, neurons, inputs, zero):
    errors, x = normal(rows, neurons), bits(rows, inputs) * (1 - zero) + zero
    at = some_positions(neurons * inputs)
    found = BitFactors(errors, bit_columns(x), zero).entries(at)
    exact, terms = (f(errors.double()).T @ f(x.double()) for f in (lambda t: t, torch.abs))
    if zero:  # Σ g·x is taken as 2·Σ g[x = 1] − Σ g
        terms = 3 * terms
    assert found.shape == at.shape and near(found, exact.flatten()[at], terms.flatten()[at], rows)


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 3, 5), (37, 10, 64), (600, 70, 100)])
@pytest.mark.parametrize("zero", [0.0, -1.0])
def test_sums_of_bits_are_exact(rows, outputs, inputs, zero):
    x, v = (bits(*shape) * (1 - zero) + zero for shape in ((rows, inputs), (outputs, inputs)))
    assert bit_sums(x, v, zero).tolist() == (x.double() @ v.double().T).tolist()


@pytest.mark.parametrize(("rows", "neurons", "inputs"), SHAPES)
def test_entries_of_pixels_are_those_of_the_whole_gradient(rows, neurons, inputs):
    errors = normal(rows, neurons)
    x = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    x[:, 0] = 0  # a pixel that is never lit has the gradient 0
    at = some_positions(neurons * inputs)
    found = PixelFactors(errors, pixel_columns(x)).entries(at)
    exact, terms = (e.T @ (x.double() / 255) for e in (errors.double(), errors.double().abs()))
    assert near(found, exact.flatten()[at], terms.flatten()[at], rows)
    assert (found[at % inputs == 0] == 0).all()


@pytest.mark.parametrize(("rows", "neurons", "inputs"), [(64, 32, 32), (67, 96, 64), (300, 64, 96), (70, 10, 32), (3, 32, 32)])
@pytest.mark.parametrize("zero", [0.0, -1.0])
def test_the_gradient_of_inputs_is_errors_times_weights(rows, neurons, inputs, zero):
    errors, v = normal(rows, neurons), bits(neurons, inputs) * (1 - zero) + zero
    exact, terms = (f(errors.double()) @ f(v.double()) for f in (lambda t: t, torch.abs))
    assert near(input_gradient(errors, v, zero), exact, terms, neurons)


def test_threads_share_the_work_and_change_nothing():
    errors, x, v = normal(1030, 96), bits(1030, 64), bits(96, 64)
    at, before = some_positions(96 * 64), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append((BitFactors(errors, bit_columns(x), 0.0).entries(at), input_gradient(errors, v, 0.0)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@pytest.mark.parametrize(
    "overrides",
    [("delta=0.1",), ("model.encoding=boolean", "delta=0.01"), ("model.hidden_size=100", "trainer.batch_size=100")],
    ids=" ".join,
)
def test_both_engines_end_with_the_same_bits(overrides):
    dense, packed = (trainer_of(*RANDOM, *overrides, f"trainer.engine={name}") for name in ("dense", "packed"))
    assert (dense.engine, packed.engine) == ("dense", "packed")
    start = bits_sha256(dense.network)
    for _ in range(3):
        metrics = [{k: v for k, v in t.epoch().items() if k in ("flips", "delta", "train_accuracy")} for t in (dense, packed)]
        assert metrics[0] == metrics[1]
        assert bits_sha256(dense.network) == bits_sha256(packed.network) != start


def differing_flips(overrides, steps, monkeypatch):
    """Steps of both trainers from the same state: flips, those that differ, and of these the ones with |g| above rounding.

    Rounding is what the order of summation may change: rows · u · Σ |error · input|, where no input is greater than 1, once for
    each engine and once for the errors, which are sums in another order themselves.
    """
    rounding, original = {}, Rule.step_early

    def watched(rule, i, g):
        rounding[i] = 3 * len(g.errors) * UNIT * g.errors.abs().sum(0)[:, None]
        original(rule, i, g)

    monkeypatch.setattr(Rule, "step_early", watched)
    dense, packed = (trainer_of(*RANDOM, *overrides, f"trainer.engine={name}") for name in ("dense", "packed"))
    flips = differing = unexplained = 0
    batches = [(epoch, batch, rows) for epoch in range(3) for batch, rows in enumerate(dense._batches(epoch))]
    for epoch, batch, rows in batches[:steps]:
        packed.load(dense.state())
        before = [p.clone() for p in dense.binary.tensors()]
        for trainer in (dense, packed):
            trainer.network.train()
            for module in trainer.frozen:
                module.eval()
            trainer.train_on(epoch, batch, rows)
        for i, (old, p, q) in enumerate(zip(before, dense.binary.tensors(), packed.binary.tensors(), strict=True)):
            assert q.grad is None
            flips += int((p != old).sum())
            if (p != q).any():
                differing += int((p != q).sum())
                unexplained += int(((p != q) & (p.grad.abs() > rounding[i])).sum())
    return flips, differing, unexplained


def test_flips_that_differ_have_a_gradient_below_rounding(monkeypatch):
    """A frozen beginning has outputs that never change: the gradients of the weights on them are nothing but rounding."""
    flips, differing, unexplained = differing_flips(("freeze=2", "delta=0.5"), 9, monkeypatch)
    assert flips > 1000 and unexplained == 0 and differing <= flips / 100


def test_mnist_flips_are_the_same(mnist_folder, monkeypatch):
    overrides = ("dataset=mnist", f"dataset.path={mnist_folder}", "trainer.batch_size=4096", "delta=0.1")
    flips, differing, unexplained = differing_flips(overrides, 6, monkeypatch)
    assert flips > 10_000 and unexplained == 0 and differing <= flips / 1000


def test_a_run_goes_on_by_the_other_engine():
    straight, first, second = (trainer_of(*RANDOM, f"trainer.engine={name}") for name in ("dense", "dense", "packed"))
    for _ in range(3):
        straight.epoch()
    first.epoch()
    second.load(first.state())
    second.epoch()
    first.load(second.state())
    first.epoch()
    assert bits_sha256(first.network) == bits_sha256(straight.network)


def test_resume_may_name_the_engine(bnn_train, summary, monkeypatch):
    original = Trainer.step
    small = (*RANDOM, "model.hidden_size=32")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", lambda *batch: os.kill(os.getpid(), signal.SIGINT) or original(*batch))
        run = bnn_train(*small, "trainer.engine=dense").runs[0]
    done = bnn_train(f"resume={run}", "trainer.engine=packed")
    assert done.code == 0 and "resumed after epoch 0, batch 1" in done.out
    assert "engine: packed" in (run / "config.yaml").read_text()
    straight = bnn_train(*small, "hydra.run.dir=straight").runs
    assert summary(run)["bits_sha256"] == summary(next(d for d in straight if d.name == "straight"))["bits_sha256"]


@pytest.mark.parametrize(
    "overrides",
    ["optimizer=hypermask", "optimizer=counter", "model=bncvl", "trainer.diagnostics=true", "trainer.precision=bf16",
     "trainer.compile=true", "trainer.devices=2", "model.encoding=centred"],
)  # fmt: skip
def test_packed_is_refused_where_it_can_not_train_and_auto_is_dense(bnn_train, overrides):
    rule = () if overrides.startswith("optimizer") else RANDOM
    refused = bnn_train(*rule, overrides, "trainer.engine=packed")
    assert refused.code == 2 and refused.err.count("\n") <= 2 and "trainer.engine=packed" in refused.err
    assert overrides.partition("=")[0].partition(".")[2] in refused.err and not refused.runs
    assert engine.choose(settings_of(*rule, overrides), "cpu") == "dense"


def test_auto_packs_a_sparse_random_mask():
    assert engine.choose(settings_of(*RANDOM, "delta=0.1"), "cpu") == "packed"
    assert engine.choose(settings_of(*RANDOM, "delta=1.0"), "cpu") == "dense"
    assert engine.choose(settings_of(*RANDOM, "delta=0.1"), "cuda") == "dense"
