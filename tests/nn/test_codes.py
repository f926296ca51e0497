"""Activations as codes: the quantiser and its gradient, and networks that compute in whole numbers in evaluation."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import HARD, on_both, settings_of, trainer_of, where

from bnn_exp import load_model
from bnn_exp.bits import deployed_state
from bnn_exp.config.settings import model_settings
from bnn_exp.data import sources
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.nn import BNCVL, BinaryNormalizedLinear, codes, device, operators
from bnn_exp.nn.codes import Quantize, codes_gradient, codes_of
from bnn_exp.nn.norm import exact_scale_and_shift, scale_and_shift
from bnn_exp.nn.requantize import requantize
from bnn_exp.records import checkpoint

SMALL = ("model=bncvl", "model.channels=[8,8]", "model.convolutions=1", "model.dense=[16]", "trainer.epochs=2")
CODES = (*SMALL, "model.activation_bits=8", "dataset.limit=300")


def trained(shape=(3, 9, 8), bits=8, **settings):
    """Returns a network in evaluation mode: statistics of random images, random bits, and scales of both signs and sizes."""
    rng = torch.Generator().manual_seed(0)
    network = BNCVLNet(shape, 4, (8, 16), 2, dense=(12,), activation_bits=bits, mean=(0.3,), std=(0.2,), **settings)
    for _ in range(20):
        network(torch.randint(256, (32, *shape), dtype=torch.uint8, generator=rng))
    for layer in (*network.convolutions, network.dense[0]):
        layer.norm.bias.data.normal_(generator=rng)
        layer.norm.weight.data[: len(HARD) - 2] = torch.tensor(HARD)[2 : 2 + len(layer.norm.weight)]
    return network.eval()


def images(shape=(3, 9, 8), count=6):
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def in_integers(network, pixels):
    """Returns the codes of every layer, computed in int64 from pixels, bits, bias and multiplier."""
    whole, found = (255 * network.mean).round().long(), []
    h, step = pixels.long() - whole, network.pixel_step
    for layer in (*network.convolutions, network.dense[0]):
        if isinstance(layer, BinaryNormalizedLinear):
            clip, power = network.mean_over_image.quantizer.clip.item(), 2**20 if layer.quantizer.levels == 15 else 2**16
            slope = round(codes.FIRST_CLIP / (clip * h.shape[2] * h.shape[3]) * power) / power
            h = (h.sum((2, 3)).double() * slope).round().clamp(0, layer.quantizer.levels).long()
            found.append(h)
        bits = layer.bits()["weight"].long()
        w = bits if layer.encoding == "boolean" else 2 * bits - 1
        u = F.conv2d(h.double(), w.double(), padding=w.shape[-1] // 2) if w.dim() == 4 else h.double() @ w.double().t()
        bias, multiplier = layer.requantization(step)
        h, step = requantize(u.to(torch.int32), bias, multiplier, layer.quantizer.levels), 1.0
        h = (F.max_pool2d(h, layer.pool) if layer.pool > 1 else h).long()
        found.append(h)
    return found


def of_layers(network, pixels):
    """Returns the codes of every layer that the network computes."""
    found = []
    hooked = (*network.convolutions, network.mean_over_image, network.dense[0])
    hooks = [module.register_forward_hook(lambda _m, _i, out: found.append(out)) for module in hooked]
    network(pixels)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("encoding", ["boolean", "bipolar", "centred"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("weights", ["latent", "bits"])
def test_in_evaluation_every_layer_is_whole_arithmetic(encoding, bits, weights):
    network, pixels = trained(encoding=encoding, bits=bits, weights=weights), images()
    expected = in_integers(network, pixels)
    for graded in (False, True):
        with torch.set_grad_enabled(graded):
            for found, codes in zip(of_layers(network, pixels), expected, strict=True):
                assert torch.equal(found.long(), codes) and torch.equal(found, found.round())
    assert len(torch.cat([layer.flatten() for layer in expected]).unique()) > 10
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for found, codes in zip(of_layers(network, pixels), expected, strict=True):
            assert torch.equal(found.long(), codes)
    loss = network(pixels).square().sum()
    loss.backward()
    # In evaluation the bits of latent weights are constants, as in every layer.
    graded = [p for name, p in network.named_parameters() if weights == "bits" or ("norm" in name or "clip" in name)]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in graded)


KERNELS = pytest.param("kernels", marks=on_both())


def begin(form, monkeypatch, request):
    """Lets the operators take the kernels, which Triton's interpreter runs on a CPU, and returns the device for `form`."""
    if form != "kernels":
        return "cpu"
    pytest.importorskip("triton")
    request.getfixturevalue("triton_runs")
    monkeypatch.setattr(operators, "kernels_everywhere", True)
    return where()


@pytest.mark.parametrize("form", ["definitions", KERNELS])
def test_on_a_gpu_the_codes_are_the_same(form, monkeypatch, request):
    network, pixels = trained(), images()
    expected = in_integers(network, pixels)
    lines = [layer.requantization(network.pixel_step) for layer in network.convolutions]
    there = begin(form, monkeypatch, request)
    monkeypatch.setattr(device, "on_host", lambda where: False)
    network.to(there)
    for layer, line in zip(network.convolutions, lines, strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(layer.requantization(network.pixel_step), line, strict=True))
    with torch.no_grad():
        for found, codes in zip(of_layers(network, pixels.to(there)), expected, strict=True):
            assert torch.equal(found.long().cpu(), codes)


def operands(dtype):
    rng = torch.Generator().manual_seed(0)
    y = (6 * torch.rand(3, 5, 7, 32, generator=rng)).to(dtype)
    return y, torch.randn(y.shape, generator=rng).to(dtype), torch.tensor(4.3)


@pytest.mark.parametrize("form", ["definition", "compiled", KERNELS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_is_that_of_clipping(form, dtype, bits, monkeypatch, request):
    """The gradient of code · clip / levels is that of min(y, clip), where clip is cut off at the greatest code."""
    there = begin(form, monkeypatch, request)
    forms = (codes_of.__wrapped__, codes_gradient.__wrapped__) if form == "definition" else (codes_of, codes_gradient)
    (y, grad, clip), levels = (x.to(there) for x in operands(dtype)), 2**bits - 1
    made = forms[0](y, clip, levels)
    assert torch.equal(made, (y.float() * (levels / clip)).round().clamp(0, levels).to(dtype)) and made.dtype == dtype
    exact, top = y.float().requires_grad_(), clip.clone().requires_grad_()
    torch.where(made == levels, top, exact).backward(grad.float() * levels / clip)
    at_y, at_clip = forms[1](grad, made, clip, levels)
    torch.testing.assert_close(at_y, exact.grad.to(dtype))
    torch.testing.assert_close(at_clip, top.grad)
    cut = torch.tensor([[torch.nan, -1.0, 2.5, 1e30] * 8]).to(dtype).to(there)
    assert forms[0](cut, clip.new_tensor(255.0), 255)[0, 1:4].tolist() == [0, 2, 255]
    assert torch.equal(
        forms[0](y, clip.new_tensor(-3.0), levels), forms[0](y, clip.new_tensor(2.0**-6), levels)
    )  # the least clip


@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.SGD])
def test_the_clip_finds_its_place_and_stays_above_0(rule):
    """The codes of numbers in 0 … 1 approximate them best, with a clip that begins far too small."""
    y = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    for first in (0.1, 0.001):
        quantizer = Quantize(4, first)
        optimizer = rule(quantizer.parameters(), lr=0.05)
        for _ in range(100):
            loss = (quantizer(y) * quantizer.clip.detach() / 15 - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.01


def test_what_cannot_give_codes_is_named():
    with pytest.raises(ValueError, match="activation_bits=3: must be one of 4, 8"):
        BNCVL(1, 1, 3, normalization="batch", activation_bits=3)
    with pytest.raises(ValueError, match="only with normalization='batch'"):
        BNCVL(1, 1, 3, activation_bits=8)
    with pytest.raises(ValueError, match="only with"):
        BinaryNormalizedLinear(1, 1, torch.nn.Tanh(), normalization="batch", activation_bits=8)
    with pytest.raises(ValueError, match="8225 inputs, only up to 8224"):
        BinaryNormalizedLinear(8225, 1, normalization="batch", activation_bits=8)
    with pytest.raises(ValueError, match="300×256 pixels are too large"):
        BNCVLNet((1, 256, 300), 2, (4,), 1, activation_bits=8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model.activation_bits=3",), "model.activation_bits=3 is not allowed\nallowed: 4, 8"),
        (
            ("model.activation_bits=8", "model.normalization=sample"),
            "=8: not with model.normalization=sample, which computes in real numbers\nallowed: model.normalization=batch",
        ),
        (("model.activation_bits=8", "model.channels=[8,1024]"), "=8: 9,216 inputs of a layer\nallowed: up to 8,224 inputs"),
    ],
)
def test_impossible_settings_are_refused(arguments, said, bnn_train, tmp_path):
    done = bnn_train("model=bncvl", *arguments)
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "extra",
    [pytest.param(("model.activation_bits=4",), marks=pytest.mark.slow), ("model.weights=bits", "optimizer=counter")],
    ids=["4 bits", "counter"],
)
def test_what_is_loaded_is_what_was_evaluated(extra, bnn_train, summary):
    """A model file holds scale and shift only, a checkpoint the statistics. Both give the same whole numbers, bit for bit."""
    done = bnn_train(*CODES, *extra, "hydra.run.dir=run")
    assert done.code == 0, done.err
    result = summary("run")
    assert result["binary_verified"] and result["real_parameters"] == 2 * (8 + 8 + 16 + 10) + 4
    network, about = load_model("run")
    assert load_model("run")[0].train().convolutions[0].norm.running_var.std() > 0  # from the checkpoint
    digits = sources.read("digits")
    with torch.no_grad():
        answers = network(torch.from_numpy(digits.test_images)).argmax(1)
    accuracy = 100 * (answers == torch.from_numpy(digits.test_labels)).double().mean().item()
    assert accuracy == pytest.approx(result["test_accuracy"])
    saved = checkpoint.load(Path("run/checkpoints/last.pt"))["network"]
    settings = about["config"]["model"]
    again = BNCVLNet((1, 8, 8), 10, (8, 8), 1, dense=(16,), activation_bits=settings["activation_bits"], weights="bits")
    for i, layer in enumerate(network.convolutions):
        norm = again.convolutions[i].norm
        norm.load_state_dict({n.split("norm.")[1]: t for n, t in saved.items() if n.startswith(f"convolutions.{i}.norm.")})
        for ours, theirs in zip(exact_scale_and_shift(norm), exact_scale_and_shift(layer.norm), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(saved[f"convolutions.{i}.quantizer.clip"], layer.quantizer.clip)


def test_the_scale_and_the_shift_of_the_file_are_those_of_the_network():
    network = trained()
    state = deployed_state(network)
    for i, layer in enumerate(network.convolutions):
        scale, shift = exact_scale_and_shift(layer.norm)
        assert torch.equal(state[f"convolutions.{i}.norm.weight"], scale)
        assert torch.equal(state[f"convolutions.{i}.norm.bias"], shift)
        norm = layer.norm
        mean, var, weight, bias = (t.double() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
        torch.testing.assert_close(scale.double(), weight / (var + norm.eps).sqrt(), rtol=1e-7, atol=1e-44)
        torch.testing.assert_close(shift.double(), bias - mean * scale, rtol=1e-7, atol=1e-44)
    torch.testing.assert_close(scale_and_shift(torch.nn.BatchNorm1d(3).eval())[0], torch.full((3,), 1 / 1.00001**0.5))


def test_a_configuration_without_the_setting_has_real_activations():
    values = vars(settings_of(*SMALL).model)
    del (old := dict(values))["activation_bits"]
    assert model_settings(old).activation_bits is None


@pytest.mark.slow
def test_codes_are_switched_on_for_a_trained_network(bnn_train, summary):
    assert bnn_train(*SMALL, "hydra.run.dir=first").code == 0
    done = bnn_train("init_from=first", "model.activation_bits=8", "freeze=1", "trainer.epochs=1", "hydra.run.dir=second")
    assert done.code == 0, done.err
    assert load_model("second")[0].convolutions[0].quantizer.clip == codes.FIRST_CLIP  # frozen
    assert load_model("second")[0].convolutions[1].quantizer.clip != codes.FIRST_CLIP


@pytest.mark.slow
def test_a_training_of_codes_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    straight, stopped, resumed = (trainer_of(*CODES, "engine.precision=bf16") for _ in range(3))
    straight.epoch()
    stopped.epoch()
    checkpoint.save(tmp_path / "last.pt", stopped.state())
    resumed.load(checkpoint.load(tmp_path / "last.pt"))
    assert straight.epoch()["train_loss"] == resumed.epoch()["train_loss"]
    for a, b in zip(straight.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    clips = [value for name, value in straight.network.state_dict().items() if name.endswith("clip")]
    assert len(clips) == 4 and clips[0] != codes.FIRST_CLIP


def test_a_network_of_float_weights_has_codes_too():
    network = BNCVLNet((1, 8, 8), 4, (8,), 1, dense=(8,), weights="float", activation_bits=4)
    network(images((1, 8, 8), 30))
    found = of_layers(network.eval(), images((1, 8, 8)))
    assert all(torch.equal(layer, layer.round()) and 0 < layer.max() <= 15 for layer in found)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_torch_compile_takes_the_network_as_one_graph(training):
    pixels, found = images(), []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = trained(weights="bits").train(training)
        network.zero_grad()
        y = (torch.compile(network, backend="eager", fullgraph=True) if compiled else network)(pixels)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in network.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
