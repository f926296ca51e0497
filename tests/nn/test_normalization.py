"""BatchNorm with its activation, as it runs on a GPU, against torch's own BatchNorm. Triton's interpreter runs the kernels."""

import copy
from contextlib import suppress

import pytest
import torch
from helpers import on_both, where
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnn_exp.nn import Binarize, batch_norm, binarize, device, normalization, normalized, operators
from bnn_exp.nn.standardize import Standardize

pytest.importorskip("triton")
pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs")], where()
ACTIVATIONS = {
    "none": None,
    "relu": nn.ReLU(),
    "bits": Binarize(),
    "halves": Binarize("centred", 0.5),
    "bits without a window": Binarize("boolean", None),
}
SHAPES = [(2, 3), (300, 17), (3, 64, 5, 7), (1100, 3), (3, 17, 29, 23)]  # the last two have more rows than a program holds


@pytest.fixture(params=["definitions", "kernels"])
def on_gpu(request, monkeypatch):
    """Makes layers compute as on a GPU, first by the definitions in torch, then by the kernels."""
    monkeypatch.setattr(device, "on_host", lambda where: False)
    monkeypatch.setattr(operators, "kernels_everywhere", request.param == "kernels")


def norm_of(shape, **options):
    norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1], **options)
    for t in (norm.weight, norm.bias, norm.running_mean):
        if t is not None:
            nn.init.normal_(t)
    return norm.to(WHERE)


def numbers(shape, dtype=torch.float32):
    """Returns numbers whose channels have their own means and deviations; the last channel is constant."""
    channels = torch.arange(1.0, shape[1] + 1).view(-1, *[1] * (len(shape) - 2))
    z = torch.randn(shape) * channels.sqrt() + 3 * channels
    z[:, -1] = 0.75
    return z.to(WHERE, dtype)


def results(norm, activation, z, grad, function):
    """Returns the activation's output, all gradients and the running statistics, in float64."""
    z = z.clone().requires_grad_()
    y = function(norm, activation, z)
    y.backward(grad.to(y.dtype))
    found = [y, z.grad, *(p.grad for p in norm.parameters()), *norm.buffers()]
    return y, z, [t.detach().double() for t in found]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_training_pass_is_that_of_torch(name, shape, on_gpu):
    norm, activation, z, grad = norm_of(shape), ACTIVATIONS[name], numbers(shape), torch.randn(shape, device=WHERE)
    exact = copy.deepcopy(norm).double()
    *_, expected = results(exact, activation, z.double(), grad, lambda n, a, x: n(x) if a is None else a(n(x)))
    *_, found = results(norm, activation, z, grad, normalized)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("shape", "dims"), [((7, 30), (1,)), ((2, 5000), (1,)), ((3, 5, 29, 31), (1, 2, 3)), ((3, 17, 20, 31), (2, 3))], ids=str
)
@pytest.mark.parametrize("name", ["none", "relu", "halves"])
def test_samples_are_normalized_as_by_torch(shape, dims, name, on_gpu):
    z, grad, activation = 50 + torch.randn(shape, device=WHERE), torch.randn(shape, device=WHERE), ACTIVATIONS[name]
    z[0] = 0.75  # a constant sample has a gradient of numbers, as in torch
    given = Standardize(dims), activation
    *_, expected = results(*given, z.double(), grad, lambda n, a, x: n(x) if a is None else a(n(x)))
    y, ours, found = results(*given, z, grad, normalized)
    torch.testing.assert_close(found[0][1:], expected[0][1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1][1:], expected[1][1:], rtol=1e-4, atol=1e-4)
    assert y.isfinite().all() and ours.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(300, 17), (3, 17, 29, 23)], ids=str)
def test_numbers_of_bf16_are_normalized_in_float32(shape, on_gpu):
    """Only the output and the gradient at z are rounded to bf16. (Triton's interpreter cuts the last bits off.)"""
    norm, z, grad = norm_of(shape), numbers(shape, torch.bfloat16), torch.randn(shape, device=WHERE).bfloat16()
    exact = copy.deepcopy(norm).double()
    *_, expected = results(exact, nn.ReLU(), z.double(), grad, lambda n, a, x: a(n(x)))
    y, _, found = results(norm, nn.ReLU(), z, grad, normalized)
    assert y.dtype == torch.bfloat16
    for ours, theirs, unit in zip(found, expected, (2**-7, 2**-7, *[1e-4] * 5), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=unit, atol=1e-4)


@pytest.mark.parametrize("shape", [(30, 5), (2, 5, 26, 23)], ids=str)
def test_options_of_a_norm(shape, on_gpu):
    """A norm without weight and bias; a norm without running statistics; another momentum and another eps."""
    for options in ({"affine": False}, {"track_running_stats": False}, {"momentum": 0.3, "eps": 0.1}):
        norm, z, grad = norm_of(shape, **options), numbers(shape), torch.randn(shape, device=WHERE)
        exact = copy.deepcopy(norm).double()
        *_, expected = results(exact, nn.ReLU(), z.double(), grad, lambda n, a, x: a(n(x)))
        *_, found = results(norm, nn.ReLU(), z, grad, normalized)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_mean_of_far_numbers_costs_no_digits(on_gpu):
    """The deviation of a channel is a thousandth of its mean, in few rows and in many."""
    for rows in (700, 5000):
        z = (1000 + torch.randn(rows, 3)).to(WHERE)
        norm = nn.BatchNorm1d(3).to(WHERE)
        torch.testing.assert_close(
            normalized(norm, None, z), nn.BatchNorm1d(3).double().to(WHERE)(z.double()).float(), rtol=0, atol=1e-3
        )


def test_images_of_any_layout_are_taken_and_channels_last_returned(on_gpu):
    for z in (numbers((2, 3, 4, 5)), numbers((2, 3, 4, 5)).to(memory_format=torch.channels_last)):
        z.requires_grad_()
        y = normalized(norm_of(z.shape), nn.ReLU(), z)
        (grad,) = torch.autograd.grad(y.sum(), z)  # the gradient at y is a number that is expanded
        for found in (y, grad):
            assert found.is_contiguous(memory_format=torch.channels_last) and found.isfinite().all()


def test_evaluation_takes_one_operator_and_is_that_of_torch(on_gpu):
    for shape in ((30, 5), (2, 5, 3, 4)):
        norm, z = norm_of(shape).eval(), numbers(shape)
        z = z if z.dim() == 2 else z.contiguous(memory_format=torch.channels_last)
        expected = binarize(norm(z), "centred")
        with Operators() as seen, torch.no_grad():
            found = normalized(norm, Binarize("centred"), z)
        assert torch.equal(found, expected)
        assert seen.names == ["bnn_exp::normalize"]
        z.requires_grad_()  # then torch's own operators compute gradients
        normalized(norm, nn.ReLU(), z).sum().backward()
        assert z.grad is not None


class Operators(TorchDispatchMode):
    """Context manager: the names of the operators that run, without views."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not operator.is_view:
            self.names.append(operator._schema.name)
        return operator(*args, **(kwargs or {}))


class OwnNorm(nn.BatchNorm1d):
    pass


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("norm", "activation"),
    [
        (OwnNorm(5), nn.ReLU()),
        (nn.SyncBatchNorm(5), nn.ReLU()),
        (hooked(nn.BatchNorm1d(5)), nn.ReLU()),
        (nn.BatchNorm1d(5), hooked(nn.ReLU())),
        (nn.BatchNorm1d(5), torch.tanh),
        (nn.BatchNorm1d(5, momentum=None), nn.ReLU()),
        (nn.BatchNorm1d(5).double(), nn.ReLU()),
        (nn.LayerNorm(5), nn.ReLU()),
        (hooked(Standardize((1,))), nn.ReLU()),
    ],
)
def test_other_modules_and_modules_with_hooks_are_called(norm, activation, monkeypatch):
    monkeypatch.setattr(device, "on_host", lambda where: False)
    with monkeypatch.context() as patch:
        patch.setattr(batch_norm, "normalize_few", None)
        patch.setattr(normalization, "standardize", None)
        x = torch.randn(4, 5, dtype=next((p.dtype for p in norm.parameters()), None))
        with suppress(ValueError):  # a SyncBatchNorm refuses to run on a CPU
            assert torch.equal(normalized(norm, activation, x), activation(norm(x)))


def test_a_batch_of_one_is_refused_as_torch_does(on_gpu):
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        normalized(norm_of((1, 3)), None, numbers((1, 3)))


def test_a_second_derivative_is_refused(on_gpu):
    z = numbers((5, 3)).requires_grad_()
    (grad,) = torch.autograd.grad(normalized(norm_of(z.shape), None, z).square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
