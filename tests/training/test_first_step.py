"""Tests that a run imports slow modules only after its first step."""

import subprocess
import sys

import pytest

LATER = ("matplotlib", "jinja2", "datasets", "pandas", "pyarrow", "sklearn", "sympy", "torch._dynamo", "submitit", "numba")
PROGRAM = """
import sys
from bnn_exp import cli
from bnn_exp.training import trainer

def step(*_):
    print(*sys.modules, file=sys.stderr)
    raise KeyboardInterrupt

trainer.Trainer.train_on = step
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_what_comes_after_the_first_step_is_imported_after_it(tmp_path):
    arguments = ["engine=dense", "engine.threads=1", "optimizer=counter", "real_optimizer=adam", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 130, done.stderr
    imported = set(done.stderr.split())
    assert {"torch", "torch.optim.adam", "bnn_exp.training.run"} <= imported
    assert imported.isdisjoint(LATER)
    assert (tmp_path / "run/samples.png").exists()


def test_optimizers_step_as_torchs_own():
    import torch

    from bnn_exp.optim import eager

    for name, values in (("Adam", {"lr": 0.1}), ("SGD", {"lr": 0.1, "momentum": 0.9})):
        ends = []
        for kind in (getattr(eager, name), getattr(torch.optim, name)):
            p = torch.nn.Parameter(torch.arange(5.0))
            optimizer = kind([p], **values)
            for _ in range(3):
                optimizer.zero_grad()
                (p**2).sum().backward()
                optimizer.step()
            other = kind([torch.nn.Parameter(p.detach().clone())], **values)
            other.load_state_dict(optimizer.state_dict())
            other.param_groups[0]["params"][0].grad = p.grad
            other.step()
            ends.append(other.param_groups[0]["params"][0])
        assert torch.equal(*ends) and ends[0].grad_fn is None
