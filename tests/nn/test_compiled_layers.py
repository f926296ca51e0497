"""The operators of images that are compiled for a CPU: BatchNorm with its activation, and max-pooling, against torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnn_exp.commands.benchmark.machine import using_threads
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.vgg import VGG
from bnn_exp.nn import Binarize, BinaryConv2d, batch_norm, binarize, convolution, function, normalized, pooling
from bnn_exp.nn.convolution import weight_gradient
from bnn_exp.nn.pooling import max_pool

SHAPES = [(2, 16, 3, 3), (5, 48, 11, 13)]  # the second has more rows than a chunk, and a last chunk of 203 rows


@pytest.fixture(autouse=True)
def all_images(monkeypatch):
    """Small images take the compiled operators too."""
    monkeypatch.setattr(function, "MANY", 1)


def images(shape, dtype=torch.float32):
    """Returns images whose channels have their own means and deviations; the last channel is constant."""
    channels = torch.arange(1.0, shape[1] + 1).view(-1, 1, 1)
    z = torch.randn(shape) * channels.sqrt() + 3 * channels
    z[:, -1] = 0.75
    return z.to(dtype)


def norm_of(shape, **options):
    norm = nn.BatchNorm2d(shape[1], **options)
    for t in norm.parameters():
        nn.init.normal_(t)
    return norm


def passed(norm, activation, z, grad, function, *options):
    """Returns the output, all gradients and the running statistics, in float64."""
    z = z.clone().requires_grad_()
    y = function(norm, activation, z, *options)
    y.backward(grad.to(y.dtype))
    return [t.detach().double() for t in (y, z.grad, *(p.grad for p in norm.parameters()), *norm.buffers())]


def by_torch(norm, activation, z, pool=1):
    y = norm(z) if activation is None else activation(norm(z))
    return F.max_pool2d(y, pool)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", [None, nn.ReLU(), Binarize("centred", 0.5), Binarize("bipolar", None)], ids=str)
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1e-4), (torch.bfloat16, 2**-7)], ids=["fp32", "bf16"])
def test_a_training_pass_is_that_of_torch(dtype, unit, activation, shape):
    """Of bfloat16 only the output and the gradient at z are rounded to bfloat16."""
    norm, z, grad = norm_of(shape), images(shape, dtype), torch.randn(shape).to(dtype)
    expected = passed(copy.deepcopy(norm).double(), activation, z.double(), grad, by_torch)
    found = passed(norm, activation, z, grad, normalized)
    for ours, theirs, rounding in zip(found, expected, (unit, unit, *[1e-4] * 5), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=1e-4)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize(("shape", "pool"), [((3, 32, 9, 7), 2), ((2, 16, 12, 13), 3)], ids=str)
@pytest.mark.parametrize("activation", [None, nn.ReLU(), Binarize()], ids=str)
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1e-4), (torch.bfloat16, 2**-7)], ids=["fp32", "bf16"])
def test_a_pooled_training_pass_is_that_of_torch(dtype, unit, activation, shape, pool):
    norm, z = norm_of(shape), torch.randn(shape).to(dtype)
    norm.weight.data[1] = -norm.weight[0].detach()  # the largest y may be of the smallest z
    grad = torch.randn(F.max_pool2d(z, pool).shape).to(dtype)
    expected = passed(copy.deepcopy(norm).double(), activation, z.double(), grad, by_torch, pool)
    found = passed(norm, activation, z, grad, normalized, pool)
    for ours, theirs, rounding in zip(found, expected, (unit, unit, *[1e-4] * 5), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=1e-4)


def test_options_of_a_norm():
    for options in ({"affine": False}, {"track_running_stats": False}, {"momentum": 0.3, "eps": 0.1}):
        norm, z, grad = norm_of(SHAPES[1], **options), images(SHAPES[1]), torch.randn(SHAPES[1])
        expected = passed(copy.deepcopy(norm).double(), nn.ReLU(), z.double(), grad, by_torch)
        for ours, theirs in zip(passed(norm, nn.ReLU(), z, grad, normalized), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_mean_of_far_numbers_costs_no_digits():
    z = 1000 + torch.randn(8, 16, 30, 30)
    norm = nn.BatchNorm2d(16)
    expected = copy.deepcopy(norm).double()(z.double()).float()
    torch.testing.assert_close(normalized(norm, None, z), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("shape", "size"), [((3, 32, 9, 7), 2), ((2, 16, 4, 12), 4), ((2, 48, 10, 8), 3)], ids=str)
def test_max_pooling_is_that_of_torch(shape, size, dtype):
    """Equal numbers in a window occur often here. torch gives the gradient to the first of them."""
    x = torch.randint(-2, 3, shape).to(dtype).to(memory_format=torch.channels_last)
    x[0, :, 0, 0] = float("nan")
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = max_pool(ours, size), F.max_pool2d(theirs, size)
    grad = torch.randn(expected.shape).to(dtype)
    found.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ours.grad, theirs.grad)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "outputs", "side"), [((3, 16, 5, 6), 32, 3), ((9, 32, 7, 7), 16, 5), ((2, 16, 40, 37), 16, 1)]
)
def test_the_gradient_of_kernels_is_that_of_torch_summed_in_float32(shape, outputs, side):
    """The second shape has more images than the kernel takes at once, the third larger images than it keeps in the cache."""
    x, grad = torch.randn(shape).bfloat16(), torch.randn(shape[0], outputs, *shape[2:]).bfloat16()
    v = torch.zeros(outputs, shape[1], side, side, dtype=torch.float64, requires_grad=True)
    F.conv2d(x.double(), v, padding=side // 2).backward(grad.double())
    for threads in (1, 3):
        with using_threads(threads):
            found = weight_gradient(x, grad, side)
        torch.testing.assert_close(found, v.grad.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("weights", ["bits", "latent", "float"])
def test_a_convolution_in_bf16_passes_its_gradients_as_torch_does(weights, pairs, monkeypatch):
    monkeypatch.setattr(convolution, "HAS_PAIRS", pairs and convolution.HAS_PAIRS)
    layer, grad = BinaryConv2d(16, 32, 3, weights=weights), torch.randn(4, 32, 7, 6)
    x = torch.randn(4, 16, 7, 6).bfloat16().requires_grad_()
    v = layer.value.detach().bfloat16().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).backward(grad.bfloat16())
    exact = x.detach().double().requires_grad_()
    F.conv2d(exact, v, padding=1).backward(grad.bfloat16().double())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2**-7, atol=1e-2)
    torch.testing.assert_close(layer.weight.grad.double(), v.grad, rtol=2**-7, atol=1e-3)


def test_the_number_of_threads_changes_no_bit():
    norm, z, grad = norm_of(SHAPES[1]), images(SHAPES[1]), torch.randn(5, 48, 5, 6)
    found = []
    for threads in (1, 3):
        with using_threads(threads):
            found.append(passed(copy.deepcopy(norm), nn.ReLU(), z, grad, normalized, 2))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_evaluation_is_that_of_torch_to_the_bit():
    """The thresholds of exported networks are those of torch's BatchNorm in evaluation."""
    norm, z = norm_of(SHAPES[1]).eval(), images(SHAPES[1])
    with torch.no_grad():
        assert torch.equal(normalized(norm, Binarize(), z), binarize(norm(z)))


def test_small_images_and_odd_channels_stay_with_torch(monkeypatch):
    for operation in ("normalize", "normalize_few", "batch_statistics"):
        monkeypatch.setattr(batch_norm, operation, None)
    monkeypatch.setattr(pooling, "pooled", None)
    odd, small = torch.randn(2, 17, 4, 4), torch.randn(2, 16, 4, 4)
    normalized(nn.BatchNorm2d(17), nn.ReLU(), max_pool(odd, 2))
    monkeypatch.setattr(function, "MANY", small.numel() + 1)
    normalized(nn.BatchNorm2d(16), nn.ReLU(), max_pool(small, 2))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", [BNCVLNet, VGG])
def test_a_network_trains_as_by_torch_alone(kind, bf16, monkeypatch):
    """In float32 the gradients differ by rounding alone; in bfloat16 by at most what bfloat16 costs in torch too."""
    torch.manual_seed(0)
    network = kind((1, 16, 16), 10, channels=(16, 32), weights="latent")
    x, labels = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8), torch.arange(8)

    def gradients(least, autocast):
        monkeypatch.setattr(function, "MANY", least)
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            F.cross_entropy(network(x), labels).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    exact = gradients(2**40, False)
    distance = (gradients(1, bf16) - exact).norm()
    assert distance <= (1.5 * (gradients(2**40, True) - exact).norm() if bf16 else 1e-4 * exact.norm())
