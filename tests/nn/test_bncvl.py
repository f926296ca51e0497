"""Tests of the binary normalised layers, against an independent NumPy version, and of the network made of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import rest_slow, trainer_of

from bnn_exp import load_model
from bnn_exp.config.rules import RULES
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.nn import (
    BNCVL,
    BinaryConv2d,
    BinaryLinear,
    BinaryNormalizedLinear,
    binary_parameters,
    encode,
    latent_parameters,
    named_bits,
    quantize,
    verify_binary,
)
from bnn_exp.optim import HyperMask, LatentAdam, LatentSGD

VALUES = {"boolean": (0.0, 1.0), "bipolar": (-1.0, 1.0), "centred": (-0.5, 0.5)}


def test_the_seeds_own_test():
    layer = BNCVL(in_channels=3, out_channels=8, kernel_size=3)
    x = torch.randn(4, 3, 32, 32, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        assert layer.quantize(layer.weight).unique().tolist() == [0.0, 1.0]
    y.mean().backward()
    assert y.shape == (4, 8, 32, 32)
    assert x.grad.abs().mean() > 0 and layer.weight.grad.abs().mean() > 0


def transcription(x, v, b):
    """Computes the forward pass of the reference program: zero-padded convolution, normalised over each sample, ReLU."""
    n, c, h, w = x.shape
    o, k = len(v), v.shape[-1]
    padded = np.zeros((n, c, h + k - 1, w + k - 1))
    padded[:, :, k // 2 : k // 2 + h, k // 2 : k // 2 + w] = x
    z = np.zeros((n, o, h, w))
    for i in range(h):
        for j in range(w):
            z[:, :, i, j] = np.einsum("nckl,ockl->no", padded[:, :, i : i + k, j : j + k], v) + b
    for sample in z:
        sample[:] = (sample - sample.mean()) / (sample.std(ddof=1) + 1e-8)
    return np.maximum(z, 0)


def slopes(f, x, step=1e-6):
    """Returns the gradient of f at x by central differences."""
    out = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        out[place] = (f(up) - f(down)) / (2 * step)
    return out


@pytest.mark.parametrize("encoding", VALUES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_forward_and_gradients_are_the_transcriptions(encoding, kernel):
    torch.manual_seed(0)
    layer = BNCVL(2, 3, kernel, encoding=encoding).double()
    torch.nn.init.normal_(layer.bias)
    low, high = VALUES[encoding]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    v, b = np.where(weight > weight.mean(), high, low), np.where(bias > bias.mean(), high, low)
    x, grad = np.random.default_rng(0).normal(size=(2, 2, 4, 5)), np.random.default_rng(1).normal(size=(2, 3, 4, 5))
    inputs = torch.from_numpy(x.copy()).requires_grad_()
    y = layer(inputs)
    y.backward(torch.from_numpy(grad))
    np.testing.assert_allclose(y.detach().numpy(), transcription(x, v, b), atol=1e-10)
    for ours, expected in (  # straight-through: the gradient of a latent weight is that of its value
        (inputs.grad, slopes(lambda x: (grad * transcription(x, v, b)).sum(), x)),
        (layer.weight.grad, slopes(lambda v: (grad * transcription(x, v, b)).sum(), v)),
        (layer.bias.grad, slopes(lambda b: (grad * transcription(x, v, b)).sum(), b)),
    ):
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-6)
    layer.eval()
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach().numpy(), transcription(x, v, b), atol=1e-10)


def test_the_dense_layer_is_a_convolution_of_one_pixel():
    torch.manual_seed(0)
    dense, convolution = BinaryNormalizedLinear(7, 5), BNCVL(7, 5, 1)
    convolution.load_state_dict({"weight": dense.weight[:, :, None, None], "bias": dense.bias})
    x = torch.randn(4, 7)
    torch.testing.assert_close(dense(x), convolution(x[:, :, None, None])[:, :, 0, 0])


def _average(layer, other):
    """Writes a moving average into `.data`, as training loops do. This write does not change the parameter's version."""
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        p.data.mul_(0.1).add_(q.data, alpha=0.9)


def _optimizer_step(layer, other):
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        p.grad = p.detach() - q.detach()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


def _swap(layer, other):
    layer.weight = other.weight


@torch.no_grad()
def _in_place(layer, other):
    layer.weight.copy_(other.weight)


WRITES = {
    "data": lambda layer, other: setattr(layer.weight, "data", other.weight.data),
    "data in place": lambda layer, other: layer.weight.data.copy_(other.weight.data),
    "numpy": lambda layer, other: np.copyto(layer.weight.detach().numpy(), other.weight.detach().numpy()),
    "average": _average,
    "assign": lambda layer, other: layer.load_state_dict(other.state_dict(), assign=True),
    "load": lambda layer, other: layer.load_state_dict(other.state_dict()),
    "step": _optimizer_step,
    "parameter": _swap,
    "no_grad": _in_place,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: BinaryLinear(30, 20, weights="latent"), (4, 30)),
        (lambda: BinaryConv2d(3, 5, weights="latent"), (4, 3, 6, 6)),
        (lambda: BNCVL(3, 5, 3), (4, 3, 6, 6)),
        (lambda: BinaryNormalizedLinear(30, 20), (4, 30)),
    ],
    ids=["linear", "convolution", "bncvl", "dense"],
)
def test_in_evaluation_bits_follow_the_latents_whoever_writes_them(make, shape, write):
    torch.manual_seed(0)
    layer, other, x = make().eval(), make().eval(), torch.randn(shape)
    before, expected = layer(x), other(x)
    WRITES[write](layer, other)
    assert not torch.equal(layer(x), before)
    torch.testing.assert_close(layer.value, encode(quantize(layer.weight.detach()), layer.encoding))
    if write != "average":
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("normalization", "dims"), [("sample", (1, 2, 3)), ("channel", (2, 3)), ("batch", (0, 2, 3))])
def test_each_normalisation_leaves_mean_0_and_deviation_1(normalization, dims):
    layer = BNCVL(3, 4, 3, torch.nn.Identity(), normalization=normalization)
    y = layer(torch.rand(5, 3, 8, 8))
    std, mean = torch.std_mean(y, dim=dims)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=0.01, rtol=0)
    assert (layer.bias is None) == (normalization != "sample")


def test_arguments_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="kernel_size=4"):
        BNCVL(1, 1, 4)
    with pytest.raises(ValueError, match="normalization='layer'"):
        BNCVL(1, 1, 3, normalization="layer")
    with pytest.raises(ValueError, match="weights='ternary'"):
        BNCVL(1, 1, 3, weights="ternary")
    with pytest.raises(ValueError, match="5×6 pixels are too small"):
        BNCVLNet((1, 6, 5), 2, channels=(2, 2, 2, 2))


@pytest.mark.parametrize(("kind", "torchs", "options"), [
    (LatentAdam, torch.optim.Adam, {"lr": 0.1}),
    (LatentSGD, torch.optim.SGD, {"lr": 0.5, "momentum": 0.9}),
])  # fmt: skip
def test_a_latent_optimizer_is_torchs_and_counts_the_bits_that_change(kind, torchs, options):
    rng = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(20, 30, generator=rng))
    theirs = torch.nn.Parameter(ours.detach().clone())
    a, b = kind([ours], schedule="linear", total_steps=10, **options), torchs([theirs], **options)
    flips = 0
    for step in range(10):
        ours.grad = theirs.grad = torch.randn(20, 30, generator=rng)
        b.param_groups[0]["lr"] = options["lr"] * (1 - step / 10)
        before = theirs.detach() > theirs.detach().mean()
        a.step()
        b.step()
        flips += int((before != (theirs.detach() > theirs.detach().mean())).sum())
        assert torch.equal(ours, theirs)
        assert a.strengths["lr"] == pytest.approx(options["lr"] * (1 - step / 10))
    assert int(a.flips[0]) == flips > 0


def test_the_network_learns_by_latents_and_by_bits_alone():
    """The samples are images of two textures. Every weight and bias is one bit."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(128) % 2
    x = torch.rand(128, 2, 8, 8, generator=rng)
    x[labels == 1, :, ::2] *= 0.3
    for weights in ("latent", "bits"):
        torch.manual_seed(0)
        network = BNCVLNet((2, 8, 8), 2, (8, 8), 1, dense=(16,), weights=weights)
        if weights == "bits":
            rule = HyperMask([w for _, w in binary_parameters(network)], 0.05, schedule="linear", total_steps=60)
        else:
            rule = LatentAdam([w for _, w in latent_parameters(network)], 0.03)
        for _ in range(60):
            loss = F.cross_entropy(network(x), labels)
            network.zero_grad()
            loss.backward()
            rule.step()
        assert (network.eval()(x).argmax(1) == labels).float().mean() > 0.95
        assert sum(verify_binary(network).values()) > 0


RUN = ("model=bncvl", "model.channels=[8,8]", "model.convolutions=1", "model.dense=[16]", "trainer.epochs=2")


@pytest.mark.parametrize("extra", [(), ("model.weights=bits", "optimizer=hypermask"), ("optimizer=latent_sgd",)])
def test_a_run_leaves_the_bits_of_its_network(bnn_train, summary, extra):
    from bnn_exp.data import sources

    done = bnn_train(*RUN, *extra, "model.normalization=sample" if not extra else "seed=1")
    result = summary(done.runs[0])
    assert done.code == 0 and result["binary_verified"]
    weights = 8 * 9 + 8 * 8 * 9 + 8 * 16 + 16 * 10
    assert result["binary_parameters"] == weights + (0 if extra else 8 + 8 + 16 + 10)  # biases too, with normalization=sample
    network, _ = load_model(done.runs[0])
    digits = sources.read("digits")
    answers = network(torch.from_numpy(digits.test_images)).argmax(1)
    accuracy = 100 * (answers == torch.from_numpy(digits.test_labels)).double().mean().item()
    assert accuracy == pytest.approx(result["test_accuracy"])
    assert sum(b.numel() for _, b in named_bits(network)) == result["binary_parameters"]


def test_the_float_twin_has_no_bits(bnn_train, summary):
    done = bnn_train(*RUN, "model.weights=float", "optimizer.lr=0.001")
    result = summary(done.runs[0])
    assert done.code == 0 and result["binary_parameters"] == 0 and result["real_parameters"] > 900


def test_impossible_pairings_and_images_are_refused(bnn_train, tmp_path):
    for arguments, said in (
        (("model.weights=latent", "optimizer=hypermask"), "can't train model.weights=latent\nallowed: optimizer=latent_adam"),
        (("model=bncvl", "model.weights=bits"), "can't train model.weights=bits\nallowed: optimizer=hypermask"),
        (("optimizer=latent_adam", "model.weights=bits"), "can't train model.weights=bits"),
        (("model=bncvl", "model.kernel_size=4"), "model.kernel_size=4 is not allowed\nallowed: an odd whole number"),
        (("model=bncvl", "model.channels=[8,8,8,8,8]"), "8×8 pixels are too small to be pooled 4 times by 2"),
    ):
        done = bnn_train(*arguments)
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", rest_slow(RULES, 3))
def test_a_training_goes_on_as_if_it_had_not_been_stopped(kind, tmp_path):
    """A checkpoint file from the middle of an epoch restores a new trainer, with augmented images."""
    from bnn_exp.records import checkpoint

    def trainer():
        return trainer_of(*RUN, f"optimizer={kind}", "dataset.augment=standard")

    straight, stopped, resumed, batches = trainer(), trainer(), trainer(), iter(range(100))
    expected = [straight.epoch(), straight.epoch()]
    assert stopped.epoch(stop=lambda: next(batches) == 4) is None
    checkpoint.save(tmp_path / "last.pt", stopped.state())
    resumed.load(checkpoint.load(tmp_path / "last.pt"))
    for line in expected:
        again = resumed.epoch()
        assert all(again[key] == line[key] for key in ("train_loss", "train_accuracy", "flips", "delta"))
    for a, b in zip(straight.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
