"""The graphs of CNNs in floats that benchmarks run in onnxruntime."""

import pytest
import torch

from bnn_exp.deploy import pack_network
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.vgg import VGG

SHAPE, TEN = (3, 9, 8), tuple("0123456789")


def trained_like(network: torch.nn.Module, pixels: torch.Tensor) -> torch.nn.Module:
    """Returns the network in evaluation mode, with the running statistics of the pixels."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        network.train()(pixels)
    return network.eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (100, *SHAPE), dtype=torch.uint8)


def run(model, pixels):
    from bnn_exp.deploy.exports.to_onnx import session

    return session(model.SerializeToString(), 1)(pixels)


def test_the_float_graph_of_a_cnn_of_real_activations_is_the_network(pixels):
    pytest.importorskip("onnxruntime")
    from bnn_exp.commands.benchmark.float_onnx import float_model

    network = trained_like(BNCVLNet(SHAPE, 10, (8, 12), 2, mean=(0.5,), std=(0.25,)), pixels)
    with torch.no_grad():
        torch.testing.assert_close(run(float_model(network, SHAPE, TEN), pixels), network(pixels), rtol=1e-3, atol=1e-3)
    assert float_model(BNCVLNet(SHAPE, 10, (8,), normalization="sample").eval(), SHAPE, TEN) is None


def test_the_float_twin_of_a_cnn_of_codes_differs_by_rounding_alone(pixels):
    """The codes of 8 bits reach far enough here: the greatest activation is below the clip."""
    pytest.importorskip("onnxruntime")
    from bnn_exp.commands.benchmark.float_onnx import float_model

    network = BNCVLNet(SHAPE, 10, (8, 12), 2, mean=(0.5,), std=(0.25,), activation_bits=8)
    trained_like(network, pixels)
    with torch.no_grad():
        expected, found = network(pixels), run(float_model(network, SHAPE, TEN), pixels)
    assert torch.corrcoef(torch.stack([expected.flatten(), found.flatten()]))[0, 1] > 0.99


def test_the_twin_of_bits_has_hardtanh(pixels):
    """Before the first activation twin and network are equal, so with one convolution hardtanh is all that differs."""
    pytest.importorskip("onnxruntime")
    from bnn_exp.commands.benchmark.float_onnx import float_model

    network = trained_like(VGG(SHAPE, 10, (8,), 1, mean=(0.5,), std=(0.25,)), pixels)
    with torch.no_grad():
        z = network.norms[0](torch.nn.functional.max_pool2d(network.convolutions[0](network.standardized(pixels)), 2))
        h = torch.nn.functional.hardtanh(z).flatten(1)
        expected = network.last_norm(torch.nn.functional.linear(h, network.last.value))
    torch.testing.assert_close(run(float_model(network, SHAPE, TEN), pixels), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [VGG, BNCVLNet])
def test_onnxruntime_runs_a_cnn_in_fp32_in_int8_and_packed(kind, pixels):
    pytest.importorskip("onnxruntime.quantization")
    from bnn_exp.commands.benchmark.inference_onnx import sessions

    network = trained_like(kind(SHAPE, 10, (8, 12), 1, mean=(0.5,), std=(0.25,)), pixels)
    packed = pack_network(network, SHAPE)
    ways = sessions(network, packed, {"image_shape": SHAPE, "classes": TEN}, 1)
    assert list(ways) == ["onnxruntime fp32", "onnxruntime int8", "onnxruntime, packed"]
    logits = {name: torch.from_numpy(way(pixels.numpy())) for name, way in ways.items()}
    assert torch.equal(logits["onnxruntime, packed"].argmax(1), packed(pixels).argmax(1))
    near = torch.corrcoef(torch.stack([logits["onnxruntime fp32"].flatten(), logits["onnxruntime int8"].flatten()]))
    assert near[0, 1] > 0.95
