"""Layers and networks as they run on a GPU, against their plain form. Triton's interpreter runs the kernels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import on_both, trainer_of, use_tapes, where

from bnn_exp.bits import bits_sha256
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.models.vgg import VGG
from bnn_exp.nn import BNCVL, BinaryConv2d, BinaryLinear, device, operators
from bnn_exp.nn.convolution import weight_gradient
from bnn_exp.nn.pooling import max_pool
from bnn_exp.nn.values import above, numbers_of_pixels
from bnn_exp.training.steps.recorded import Recorded

pytest.importorskip("triton")
pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs")], where()
VALUES = {"boolean": (0.0, 1.0), "bipolar": (-1.0, 1.0), "centred": (-0.5, 0.5)}


@pytest.fixture(params=["definitions", "kernels"])
def on_gpu(request, monkeypatch):
    """Returns a function: from its call on, layers compute as on a GPU, by the definitions in torch or by the kernels."""

    def begin():
        monkeypatch.setattr(device, "on_host", lambda where: False)
        monkeypatch.setattr(operators, "kernels_everywhere", request.param == "kernels")

    return begin


@pytest.mark.parametrize(
    "shape",
    [(7,), (5, 70), (3, 1100), (5, 3, 3, 3), (4, 130, 3, 3), (2, 1, 5, 5), (3, 4, 1, 1), (3, 5, 7), (2, 3, 4, 2, 3)],
    ids=str,
)
@pytest.mark.parametrize("encoding", VALUES)
def test_values_are_those_of_the_encoding(shape, encoding, on_gpu):
    on_gpu()
    bits, latent = torch.full(shape, 0.5, device=WHERE).bernoulli_(), torch.randn(shape, device=WHERE)
    low, high = VALUES[encoding]
    for dtype in (torch.float32, torch.bfloat16):
        found = above(bits, None, low, high, dtype), above(latent, latent.mean(), low, high, dtype)
        for values, ones in zip(found, (bits == 1, latent > latent.mean()), strict=True):
            assert torch.equal(values, torch.where(ones, high, low)) and values.dtype == dtype
            assert len(shape) != 4 or values.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize(("inputs", "width"), [(784, 784), (9, 16), (5, 5)])
def test_pixels_are_numbers_followed_by_zeros(inputs, width, on_gpu):
    on_gpu()
    whole = torch.randint(256, (14, inputs + 3), device=WHERE).to(torch.uint8)
    for pixels in (whole[:, :inputs].contiguous(), whole[::2, 1 : 1 + inputs]):
        found = numbers_of_pixels(pixels, width, torch.bfloat16)
        assert torch.equal(found.long()[:, :inputs], pixels.long()) and found.dtype == torch.bfloat16
        assert found.shape == (len(pixels), width) and not found[:, inputs:].any()


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "height", "width", "size"),
    [(3, 1, 16, 7, 5, 3), (2, 16, 20, 9, 6, 3), (2, 3, 70, 5, 4, 5), (1, 8, 16, 1, 1, 3), (2, 20, 5, 3, 3, 1)],
)
def test_the_weight_gradient_of_a_convolution_is_that_of_autograd(batch, inputs, outputs, height, width, size, on_gpu):
    """The interpreter does not multiply bfloat16, so float16 replaces bfloat16 there."""
    on_gpu()
    kind = {"device": WHERE, "dtype": torch.bfloat16 if WHERE == "cuda" else torch.float16}
    x, grad = torch.randn(batch, inputs, height, width, **kind), torch.randn(batch, outputs, height, width, **kind)
    weight = torch.zeros(outputs, inputs, size, size, device=WHERE, dtype=torch.float64, requires_grad=True)
    F.conv2d(x.double(), weight, padding=size // 2).backward(grad.double())
    found = weight_gradient(x, grad, size)
    torch.testing.assert_close(found.double(), weight.grad, rtol=0, atol=1e-4)
    assert found.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 8, 6), 2), ((3, 70, 5, 7), 2), ((1, 5, 9, 9), 3), ((2, 1, 4, 4), 1)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_is_that_of_torch(shape, size, dtype, on_gpu):
    """Small whole numbers: many windows have several largest numbers, of which the first receives the gradient."""
    on_gpu()
    x = torch.randint(4, shape, device=WHERE).to(dtype)
    x[0, 0, 0, 1] = torch.nan
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    y, expected = max_pool(ours, size), F.max_pool2d(theirs, size)
    grad = torch.randn_like(expected)
    y.backward(grad)
    expected.backward(grad)
    assert torch.equal(y.nan_to_num(9), expected.nan_to_num(9)) and torch.equal(ours.grad, theirs.grad)
    assert y.permute(0, 2, 3, 1).is_contiguous()


NETWORKS = {
    "mlp": lambda: MLP(3 * 8 * 9, 5, 20, 3),
    "mlp of halves": lambda: MLP(3 * 8 * 9, 5, 20, 2, encoding="centred", window=None, binarize_logits=True),
    "mlp of latent weights": lambda: MLP(3 * 8 * 9, 5, 20, 3, encoding="boolean", affine=False, weights="latent"),
    "bncvl": lambda: BNCVLNet((3, 8, 9), 5, (6, 17), 1, dense=(12,), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    "bncvl by sample": lambda: BNCVLNet((3, 8, 9), 5, (6, 7), 1, dense=(12,), normalization="sample"),
    "bncvl by channel": lambda: BNCVLNet((3, 8, 9), 5, (6, 7), 1, dense=(12,), normalization="channel"),
    "bncvl of bits": lambda: BNCVLNet((3, 8, 9), 5, (6, 7), 1, dense=(12,), weights="bits", encoding="bipolar"),
    "vgg": lambda: VGG((3, 8, 9), 5, (6, 7)),
    "vgg of real weights": lambda: VGG((3, 8, 9), 5, (6, 7), weights="float"),
}
LABELS = torch.arange(13, device=WHERE) % 5


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_a_network_is_that_of_its_plain_form(name, on_gpu):
    """Logits, gradients and running statistics, in float32. Whole numbers at a threshold would decide bits by rounding."""
    plain = NETWORKS[name]().to(WHERE)
    for norm in (m for m in plain.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)):
        if norm.bias is not None:
            torch.nn.init.normal_(norm.bias)
    ours, x = copy.deepcopy(plain), torch.randint(256, (13, 3, 8, 9), dtype=torch.uint8, device=WHERE)
    expected = passes(plain, x)
    on_gpu()
    found = passes(ours, x)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=1e-3, atol=1e-5)


def passes(network, x):
    logits = network(x)
    F.cross_entropy(logits, LABELS).backward()
    return [logits.detach(), *(p.grad for p in network.parameters()), *network.buffers()]


@pytest.mark.slow
@pytest.mark.skipif(WHERE == "cuda", reason="tests/training/test_gpu.py records real graphs")
def test_a_graph_holds_the_kernels_of_a_training(monkeypatch):
    """Also the numbers of the batches, of which each is augmented differently, and the running statistics."""
    monkeypatch.setattr(device, "on_host", lambda where: False)
    monkeypatch.setattr(operators, "kernels_everywhere", True)
    tapes, ends = use_tapes(monkeypatch), []
    small = "model=bncvl model.channels=[4,4] model.convolutions=1 model.dense=[8] dataset.limit=40 trainer.batch_size=16"
    for recorded in (True, False):
        trainer = trainer_of(*small.split(), "optimizer=latent_sgd", "engine.precision=bf16", "dataset.augment=standard")
        if recorded:
            trainer.step = Recorded(trainer.step, required=True)
        metrics = [trainer.epoch() for _ in range(2)]
        buffers = {name: t.tolist() for name, t in trainer.network.named_buffers()}
        ends.append((bits_sha256(trainer.network), buffers, *(m[key] for m in metrics for key in ("train_loss", "flips"))))
    assert ends[0] == ends[1] and len(tapes) == 2


@pytest.mark.parametrize("shape", [(7,), (2, 3, 7)], ids=str)
def test_a_linear_layer_takes_any_number_of_dimensions(shape, on_gpu):
    """A layer takes inputs of any number of dimensions, also on a GPU: a network of a plugin may have one for places."""
    layer, x = BinaryLinear(7, 5).to(WHERE), torch.randn(shape, device=WHERE, requires_grad=True)
    ends = []
    for begin in (lambda: None, on_gpu):
        begin()
        y = layer(x)
        ends.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, layer.weight))))
    for expected, found in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected)


def test_sums_under_autocast_are_exact_and_gradients_round_to_bf16(on_gpu):
    """Sums of 600 values or pixels exceed 256, the largest number up to which bf16 holds every whole number."""
    on_gpu()
    for pixels in (True, False):
        layer = BinaryLinear(600, 40).to(WHERE)
        x = torch.randint(256, (30, 600), device=WHERE).to(torch.uint8) if pixels else torch.randn(30, 600, device=WHERE).sign()
        exact = x.double() @ (2 * layer.weight.detach().double() - 1).T / (255 if pixels else 1)
        with torch.autocast(WHERE, torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.float32 and layer.weight.grad is None
        torch.testing.assert_close(y.double(), exact, rtol=2.0**-23 if pixels else 0, atol=0)
        grad = torch.randn_like(y)
        y.backward(grad)
        inputs = x.double() / (255 if pixels else 1)
        off = (layer.weight.grad.double() - grad.double().T @ inputs).abs()
        assert layer.weight.grad.dtype == torch.float32
        assert (off <= 1.01 * 2**-8 * grad.double().abs().T @ inputs.abs()).all() and off.max() > 0


@pytest.mark.parametrize("inputs", [28, 100])
def test_a_convolution_of_values_in_bf16_rounds_its_sums_only(inputs, on_gpu):
    """Sums of at most 256 values ±1 are exact. A larger sum is the nearest number of bf16, and keeps its sign."""
    on_gpu()
    layer, x = BinaryConv2d(inputs, 4).to(WHERE), torch.randn(3, inputs, 6, 5, device=WHERE).sign()
    x[0] = layer.value.detach()[0, :, 1, 1, None, None]  # the sums of the first image are large
    with torch.autocast(WHERE, torch.bfloat16):
        y = layer(x.bfloat16().contiguous(memory_format=torch.channels_last))
    exact = F.conv2d(x.double(), layer.value.detach().double(), padding=1)
    assert torch.equal(y, exact.bfloat16()) and y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y.double(), exact) == (exact.abs().max() <= 256)


def test_under_autocast_convolutions_read_channels_last_in_bf16(on_gpu):
    """A convolution would otherwise copy each operand before it multiplies."""
    on_gpu()
    for channels in (1, 3):
        layer = BNCVL(channels, 4, 3, normalization="batch").to(WHERE)
        images = torch.randint(256, (5, channels, 8, 8), device=WHERE).to(torch.uint8)
        network = BNCVLNet((channels, 8, 8), 5).to(WHERE)
        with torch.autocast(WHERE, torch.bfloat16):
            x = network.standardized(images)
            operands = x, layer.value, layer(x)
        assert all(t.dtype == torch.bfloat16 and t.permute(0, 2, 3, 1).is_contiguous() for t in operands)
        operands[-1].sum().backward()
        assert layer.weight.grad.is_contiguous() and layer.weight.grad.dtype == torch.float32
