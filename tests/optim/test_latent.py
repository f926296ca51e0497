"""Tests `optimizer=latent`: any torch optimizer over latent weights, resumed, in a sweep, and refused with a short message."""

import csv
import json
import sys

import pytest
import torch
from helpers import settings_of, trainer_of

from bnn_exp.errors import UserError
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import latent_parameters
from bnn_exp.optim import LatentAdam, LatentSGD, build_binary, latent_optimizer
from bnn_exp.records import checkpoint

SMALL = ("trainer=smoke", "model.hidden_size=8", "trainer.epochs=3", "optimizer=latent")
OWN = """
import torch

class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr, sign=-1.0):
        super().__init__(params, {"lr": lr, "sign": sign})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=group["sign"] * group["lr"])
"""


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module with the user's own optimizer. Yields the name of the optimizer."""
    (tmp_path / "of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "of_mine:Plain"
    sys.modules.pop("of_mine", None)


@pytest.mark.parametrize(("torch_name", "options", "twin"), [
    ("Adam", None, lambda params: torch.optim.Adam(params, 0.03)),
    ("torch.optim.RMSprop", "{momentum:0.9}", lambda params: torch.optim.RMSprop(params, 0.03, momentum=0.9)),
    ("torch.optim:AdamW", "{betas:[0.8,0.9],weight_decay:0.1}", lambda p: torch.optim.AdamW(p, 0.03, (0.8, 0.9), 1e-8, 0.1)),
    ("NAdam", None, lambda params: torch.optim.NAdam(params, 0.03)),
    ("Adafactor", None, lambda params: torch.optim.Adafactor(params, 0.03)),
    ("of_mine:Plain", None, lambda params: torch.optim.SGD(params, 0.03)),
])  # fmt: skip
def test_it_steps_as_the_class_that_it_names(own, torch_name, options, twin):
    """The learning rate is that of a LambdaLR with the same schedule, and flips are the bits that change."""
    said = [f"optimizer.options={options}"] if options else []
    settings = settings_of(*SMALL, f"optimizer.torch='{torch_name}'", "optimizer.lr=0.03", "optimizer.schedule=linear", *said)
    network = MLP(16, 3, 8, 3, weights="latent")
    ours = build_binary(settings.optimizer, network, 16, 10, 0)
    weights = [p for _, p in latent_parameters(network)]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in weights]
    theirs = twin(copies)
    falling = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: 1 - step / 10)
    flips = [0] * len(weights)
    for _ in range(6):
        before = [p > p.mean() for p in copies]
        for p, q in zip(weights, copies, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
        falling.step()
        flips = [n + int((b != (q > q.mean())).sum()) for n, b, q in zip(flips, before, copies, strict=True)]
        for p, q in zip(weights, copies, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert [int(n) for n in ours.flips] == flips and sum(flips) > 0
    assert ours.strengths["lr"] == pytest.approx(0.03 * 0.5)
    kept = sum(v.nbytes for state in theirs.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    assert ours.state_bytes == kept + sum(p.nbytes for p in copies)


@pytest.mark.parametrize(("kind", "options"), [(LatentAdam, {}), (LatentSGD, {"momentum": 0.5})])
def test_the_usual_two_are_the_same_by_both_ways(kind, options):
    torch.manual_seed(0)
    one = torch.nn.Parameter(torch.randn(4, 6))
    other = torch.nn.Parameter(one.detach().clone())
    named = latent_optimizer({LatentAdam: torch.optim.Adam, LatentSGD: torch.optim.SGD}[kind])
    pair = [k([p], lr=0.1, schedule="cosine", total_steps=5, **options) for k, p in ((kind, one), (named, other))]
    for _ in range(5):
        g = torch.randn(4, 6)
        for optimizer, p in zip(pair, (one, other), strict=True):
            p.grad = g.clone()
            optimizer.step()
    assert torch.equal(one, other) and pair[0].state_bytes == pair[1].state_bytes


def test_a_run_stopped_and_resumed_is_the_run(bnn_train, summary, tmp_path):
    options = (*SMALL, "optimizer.torch=RMSprop", "optimizer.options={momentum:0.9,alpha:0.9}", "optimizer.lr=0.02")
    whole = bnn_train(*options, "hydra.run.dir=whole")
    state = trainer_of(*options)
    assert whole.code == 0 and sum(sum(m["flips"].values()) for m in lines(whole.runs[0])) > 0
    state.epoch()
    checkpoint.save(tmp_path / "state.pt", state.state())
    again = trainer_of(*options)
    again.load(checkpoint.load(tmp_path / "state.pt"))
    for trainer in (state, again):
        trainer.epoch()
        trainer.epoch()
    assert torch.equal(state.network.layers[0].weight, again.network.layers[0].weight)
    result = summary("whole")
    assert result["state_bytes_per_weight"] == pytest.approx(4 * 3, rel=0.01)  # the latent weight, a mean square and a momentum
    assert lines(whole.runs[0])[-1]["lr"] < 0.02


def test_a_sweep_over_classes(bnn_train, own, tmp_path):
    done = bnn_train(
        "-m", *SMALL[:-2], "trainer.epochs=1", "optimizer=latent", "optimizer.torch=SGD,of_mine:Plain", "optimizer.lr=0.5,1"
    )
    rows = list(csv.DictReader(next(tmp_path.rglob("sweep.csv")).open()))
    assert done.code == 0 and {row["optimizer.torch"] for row in rows} == {"SGD", "of_mine:Plain"} and len(rows) == 4
    by_lr = {(row["optimizer.torch"], row["optimizer.lr"]): row["test_accuracy_mean"] for row in rows}
    assert by_lr["SGD", "1"] == by_lr["of_mine:Plain", "1"]  # both optimizers have the same equation


@pytest.mark.parametrize(("said", "found"), [
    (["optimizer.torch=RMSProp"], ["optimizer.torch=RMSProp", "RMSProp", "allowed"]),
    (["optimizer.torch=no.such:Thing"], ["optimizer.torch=no.such:Thing", "No module named"]),
    (["optimizer.torch=torch.nn:Linear"], ["no optimizer of torch"]),
    (["optimizer.torch=torch.optim:Optimizer"], ["no optimizer of torch"]),
    (["optimizer.torch=LBFGS"], ["optimizer.torch=LBFGS", "closure"]),
    (["optimizer.torch=SparseAdam"], ["optimizer.torch=SparseAdam", "dense gradients"]),
    (["optimizer.torch=RMSprop", "optimizer.options={moment:0.9}"], ["'moment'", "alpha", "momentum"]),
    (["optimizer.torch=RMSprop", "optimizer.options={alpha:-1}"], ["alpha", "-1"]),
    (["optimizer.options={lr:1}"], ["optimizer.options.lr=1", "optimizer.lr"]),
    (["optimizer.options=3"], ["optimizer.options=3", "{NAME:VALUE,…}"]),
    (["optimizer.options.momentum=0.9"], ["optimizer.options.momentum", "optimizer.options={NAME:VALUE,…}"]),
    (["optimizer.lr=0"], ["optimizer.lr=0"]),
    (["model.weights=bits"], ["optimizer=latent", "model.weights=bits"]),
])  # fmt: skip
def test_what_can_not_be_is_said_before_anything_is_written(bnn_train, tmp_path, said, found):
    done = bnn_train(*SMALL, *said)
    message = [line for line in done.err.splitlines() if line]
    assert done.code == 2 and 1 <= len(message) <= 3 and "Traceback" not in done.err
    assert all(part in done.err for part in found), done.err
    assert not list(tmp_path.iterdir())


def test_tensors_that_the_class_can_not_train_are_said(bnn_train):
    """Muon trains only matrices; the weights of a convolution have four dimensions."""
    done = bnn_train("trainer=smoke", "model=bncvl", "optimizer=latent", "optimizer.torch=Muon", "dataset.limit=64")
    assert done.code == 2 and "optimizer.torch=Muon" in done.err and len(done.err.splitlines()) <= 3


def test_a_class_that_is_gone_is_said_at_the_resume(bnn_train, own, tmp_path):
    assert bnn_train(*SMALL, f"optimizer.torch={own}", "trainer.epochs=1", "hydra.run.dir=run").code == 0
    summary = tmp_path / "run/summary.json"
    summary.write_text(summary.read_text().replace('"completed"', '"interrupted"'))
    sys.modules.pop("of_mine")
    (tmp_path / "of_mine.py").unlink()
    done = bnn_train("resume=run")
    assert done.code == 2 and "optimizer.torch=of_mine:Plain: No module named 'of_mine'" in done.err


def test_names_are_those_of_torch():
    from bnn_exp.optim.latent import torch_class

    for name in ("Adam", "torch.optim.Adam", "torch.optim:Adam", "torch.optim.adam.Adam"):
        assert torch_class(name) is torch.optim.Adam
    for name in ("", ":", "a:", ".", "Adam.x", "torch.optim", "os:path"):
        with pytest.raises(UserError, match=r"optimizer\.torch="):
            torch_class(name)
