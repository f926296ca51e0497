"""The losses and the right answers as a GPU computes them, against plain torch. Triton's interpreter runs the kernels."""

import pytest
import torch
import torch.nn.functional as F
from helpers import on_both, where

from bnn_exp.nn import device, operators
from bnn_exp.training.losses import cross_entropy, right_answers, squared_hinge

pytest.importorskip("triton")
pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs")], where()


@pytest.fixture(params=["definitions", "kernels"], autouse=True)
def on_gpu(request, monkeypatch):
    """Makes losses compute as on a GPU, first by the definitions in torch, then by the kernels."""
    monkeypatch.setattr(device, "on_host", lambda where: False)
    monkeypatch.setattr(operators, "kernels_everywhere", request.param == "kernels")


def hinge(z, labels):
    """Returns the squared hinge loss, term by term."""
    signs = torch.full_like(z, -1).scatter(1, labels[:, None], 1)
    return F.relu(1 - signs * z).pow(2).sum() / len(z)


@pytest.mark.parametrize(("loss", "plain"), [(cross_entropy, F.cross_entropy), (squared_hinge, hinge)])
@pytest.mark.parametrize("shape", [(1, 2), (37, 10), (1500, 10), (40, 1000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_and_its_gradient_are_those_of_torch(loss, plain, shape, dtype):
    labels = torch.randint(shape[1], shape[:1], device=WHERE)
    z = (3 * torch.randn(shape, device=WHERE)).to(dtype).requires_grad_()
    exact = z.detach().double().requires_grad_()
    expected = plain(exact, labels)
    (3 * expected).backward()
    found = loss(z, labels)
    (3 * found).backward()
    assert found.dtype == torch.float32 and found.shape == ()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    # Triton's interpreter does not round to bf16, but cuts the last bits off.
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=1e-4 if dtype == torch.float32 else 2**-7, atol=1e-7)


def test_a_loss_that_is_no_number_stays_none():
    for loss in (cross_entropy, squared_hinge):
        z = torch.zeros(5, 3, device=WHERE)
        z[2, 1] = torch.nan
        assert loss(z, torch.zeros(5, dtype=torch.int64, device=WHERE)).isnan()


@pytest.mark.parametrize("shape", [(1, 2), (300, 10), (1500, 3)], ids=str)
def test_the_first_largest_logit_is_the_answer(shape):
    z = torch.randint(4, shape, device=WHERE).float()  # small whole numbers: many logits are equal
    labels = torch.randint(shape[1], shape[:1], device=WHERE)
    found = right_answers(z, labels)
    first = torch.tensor([row.index(max(row)) for row in z.tolist()], device=WHERE)
    assert found == (first == labels).sum() and found.dtype == torch.int64
