"""ONNX, QONNX and torch.export against packed networks: every layer gives the integers of the packed network."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from cnns import random_bncvl, random_pictures, random_vgg, unpacked_bits
from helpers import random_mlp
from torch import Tensor, nn

from bnn_exp.bits import pack
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy import export_c, export_onnx, export_qonnx, export_torch, pack_network
from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.integers import Average, CodeLayer, StepLayer
from bnn_exp.deploy.mlp import LastLayer
from bnn_exp.errors import UserError
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.vgg import VGG
from bnn_exp.nn.norm import affine_norm

TEN = tuple("0123456789")


def random_codes(seed: int) -> DeployedCNN:
    """Returns a packed CNN of codes: multipliers of both signs and 0, biases, paddings, levels and sizes are random."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    encoding, levels = draw.choice(["boolean", "bipolar", "centred"]), draw.choice([15, 255])
    shape = channels, height, width = draw.choice([1, 3]), draw.randint(5, 11), draw.randint(5, 11)
    layers: list[nn.Module] = []

    def code_layer(inputs: int, outputs: int, size: int, pool: int, padding: Tensor) -> CodeLayer:
        bits = torch.randint(0, 2, (outputs, size, size, inputs), dtype=torch.uint8)
        bias = torch.randint(-3000, 3000, (outputs,), dtype=torch.int32)
        multiplier = torch.randint(-1000, 1000, (outputs,)) / 2.0 ** torch.randint(7, 15, (outputs,))
        multiplier[0] = 0
        return CodeLayer(bits, encoding, pool, padding, bias, multiplier, levels)

    for i in range(draw.randint(1, 3)):
        outputs, pool = draw.randint(2, 19), draw.choice([1, 2]) if min(height, width) > 1 else 1
        padding = torch.randint(0, 256, (channels,), dtype=torch.uint8) if i == 0 else torch.zeros(channels, dtype=torch.uint8)
        layers.append(code_layer(channels, outputs, draw.choice([1, 3, 5]), pool, padding))
        channels, height, width = outputs, height // pool, width // pool
    layers.append(Average(channels, torch.tensor(draw.randint(1, 999) / 1024), levels))
    for outputs in (7, 9):
        layers.append(code_layer(channels, outputs, 1, 1, torch.zeros(channels, dtype=torch.uint8)))
        channels = outputs
    norm = affine_norm(nn.BatchNorm1d, torch.randn(10), torch.randn(10))
    layers.append(LastLayer(pack(torch.randint(0, 2, (10, channels))), channels, encoding, "codes", norm))
    return DeployedCNN(layers, shape)


def some_network(kind: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Returns a packed network of random settings, and pixels for it."""
    if kind == "mlp":
        network, pixels = random_mlp(seed)
        return pack_network(network), pixels[:20]
    packed = random_codes(seed) if kind == "codes" else pack_network({"vgg": random_vgg, "bncvl": random_bncvl}[kind](seed))
    return packed, random_pictures(packed)


def numbers(network: nn.Module, pixels: Tensor, values: bool) -> list[Tensor]:
    """Returns what each layer but the last gives: codes, and bits as 0 and 1 or as their values; channels first."""
    h, found = pixels.permute(0, 2, 3, 1).contiguous() if isinstance(network, DeployedCNN) else pixels.flatten(1), []
    for layer in network.layers[:-1]:
        h = layer(h)
        if isinstance(layer, CodeLayer | Average):
            result = h.float()
        else:
            picture = isinstance(layer, StepLayer)
            bits = unpacked_bits(h, layer.outputs) if picture else unpacked(h, torch.bool)[:, : layer.outputs]
            result = torch.where(bits, 1.0, float(layer.zero) if values else 0.0)
        found.append(result.permute(0, 3, 1, 2) if result.dim() == 4 else result)
    return found


def compare(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for got, known in zip(found, expected, strict=True):
        assert int((got.reshape(known.shape) != known).sum()) == 0


def in_onnxruntime(network: nn.Module, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns the logits of the ONNX graph, and what its layers give, with bits as 0 and 1."""
    import onnxruntime
    from onnx import TensorProto, helper

    from bnn_exp.deploy.exports.graphs.models import packed_model

    model = packed_model(network, tuple(pixels.shape[1:]), TEN[: network.layers[-1].outputs])
    names = [f"layer_{i}" for i in range(len(network.layers) - 1)]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, *layers = (torch.from_numpy(each) for each in run.run(["logits", *names], {"pixels": pixels.numpy()}))
    codes = [isinstance(layer, CodeLayer | Average) for layer in network.layers]
    return logits, [each.float() if code else (each > 0).float() for each, code in zip(layers, codes, strict=False)]


@pytest.mark.parametrize("kind", ["mlp", "codes", "vgg", "bncvl"])
@pytest.mark.parametrize("seed", range(6))
def test_every_layer_of_the_onnx_graph_gives_the_integers_of_the_network(kind, seed):
    pytest.importorskip("onnxruntime")
    network, pixels = some_network(kind, seed)
    logits, layers = in_onnxruntime(network, pixels)
    compare(layers, numbers(network, pixels, values=False))
    expected = network(pixels)
    torch.testing.assert_close(logits, expected, equal_nan=True, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("kind", ["mlp", "codes", "vgg", "bncvl"])
@pytest.mark.parametrize("seed", range(4))
def test_every_layer_of_the_qonnx_graph_gives_the_integers_of_the_network(kind, seed):
    pytest.importorskip("qonnx")
    from bnn_exp.deploy.exports.graphs.qonnx import qonnx_model
    from bnn_exp.deploy.exports.to_qonnx import runner, with_types

    network, pixels = some_network(kind, seed)
    classes = TEN[: network.layers[-1].outputs]
    model = with_types(qonnx_model(network, tuple(pixels.shape[1:]), classes))
    names = [f"layer_{i}" for i in range(len(network.layers) - 1)]
    logits, *layers = runner(model, len(pixels), ("logits", *names))(pixels)
    compare(layers, numbers(network, pixels, values=True))
    expected = network(pixels)
    torch.testing.assert_close(logits, expected, equal_nan=True, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_the_tensors_of_a_qonnx_file_have_types_of_few_bits(tmp_path):
    """The package infers the types. Bits that a convolution pads with zeros are numbers of two bits."""
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper

    packed = pack_network(random_vgg(3, channels=[4], convolutions=2, kernel_size=3, encoding="bipolar"))
    model = ModelWrapper(str(export_qonnx(packed, tmp_path)["file"]))
    names = [
        "pixels",
        "layer_0",
        "layer_1",
        *(node.input[1] for node in model.graph.node if node.op_type in ("Conv", "MatMul")),
    ]
    assert [model.get_tensor_datatype(name).name for name in names] == ["UINT8", "INT2", "INT2", *["BIPOLAR"] * 3]


def test_qonnx_says_what_it_needs(tmp_path, monkeypatch):
    network = pack_network(random_mlp(1)[0])
    monkeypatch.setitem(sys.modules, "qonnx", None)
    with pytest.raises(UserError, match=r"export\.format=qonnx: .*qonnx.*\nallowed: after pip install 'bnn-exp\[qonnx\]'$"):
        export_qonnx(network, tmp_path, random_mlp(1)[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bncvl", "vgg"])
def test_the_torch_program_of_a_cnn_of_integers_runs_where_we_are_not_installed(kind, tmp_path):
    network, pixels = some_network(kind, 5)
    made = export_torch(network, tmp_path, pixels)
    torch.save((pixels, network(pixels)), tmp_path / "expected.pt")
    alone = """
import sys, torch
network = torch.export.load(sys.argv[1]).module()
x, expected = torch.load(sys.argv[2])
assert "bnn_exp" not in sys.modules and torch.equal(network(x), expected) and torch.equal(network(x[:1]), expected[:1])
"""
    command = [sys.executable, "-W", "ignore", "-c", alone, str(made["file"]), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_onnx_file_of_a_cnn_takes_a_bit_for_a_weight(tmp_path):
    """The constants of an output are 4 bytes: the bias that holds the threshold. Nodes and shapes are the rest."""
    pytest.importorskip("onnxruntime")
    network = VGG((3, 8, 8), 10, (128, 256), mean=(0.5,) * 3, std=(0.25,)).eval()
    weights = sum(layer.weight.numel() for layer in (*network.convolutions, network.last))
    made = export_onnx(network, tmp_path)
    assert made["bytes"] < 1.05 * (weights / 8 + 4 * 2 * (128 + 256) + 80)


@pytest.mark.parametrize("form", [export_onnx, export_qonnx, export_torch])
def test_an_altered_cnn_is_not_exported(form, tmp_path):
    pytest.importorskip("onnxruntime")
    network = random_vgg(2)
    network.norms[0].forward = lambda x: x
    with pytest.raises(UserError, match=r"export\.format="):
        form(network, tmp_path)
    packed = pack_network(random_vgg(2))
    packed.layers[0].register_forward_hook(lambda *given: None)
    with pytest.raises(UserError, match=r"export\.format="):
        form(packed, tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_threshold_decides_the_bits_at_borders_and_inside():
    """Thresholds that no BatchNorm gives are refused, in place of wrong bits."""
    from bnn_exp.deploy.exports.products import step_threshold

    packed = pack_network(random_vgg(0, image_shape=(1, 8, 8), channels=[8], convolutions=2, kernel_size=3, encoding="bipolar"))
    layer = packed.layers[1]
    assert step_threshold(layer, (8, 8)).shape == (8,)
    layer.thresholds[0, 0] += 9
    with pytest.raises(ValueError, match="not those of one BatchNorm"):
        step_threshold(layer, (8, 8))


def test_requantisation_in_onnxruntime_rounds_as_ours():
    """QLinearConv computes clamp(rint((u + bias) · multiplier), 0, 255), ties to even, for many sums at once."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    from bnn_exp.deploy.exports.graphs.graph import Graph

    rng, n = np.random.default_rng(0), 100_000
    multiplier = (rng.integers(1, 2**14, n) / 2.0 ** rng.integers(0, 24, n)).astype(np.float32)
    sums = np.rint(rng.integers(-40, 560, n) / 2 / multiplier.astype(np.float64)).clip(-(2**30), 2**30).astype(np.int64)
    graph = Graph()
    zero, one = graph.constant(0, np.uint8), graph.floats(1.0)
    weights = graph.constant(np.ones((n, 1, 1, 1)), np.int8)
    constants = weights, graph.constant(multiplier), graph.constant(0, np.int8), one, zero
    y = graph("QLinearConv", "x", one, zero, *constants, graph.constant(sums - 3, np.int32), kernel_shape=[1, 1])
    x_info = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 1, 1, 1])
    made = helper.make_graph(
        graph.nodes, "g", [x_info], [helper.make_tensor_value_info(y, TensorProto.UINT8, None)], graph.constants
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = run.run(None, {"x": np.full((1, 1, 1, 1), 3, np.uint8)})[0].ravel()
    product = sums.astype(np.float32) * multiplier
    assert (np.abs(product % 1) == 0.5).sum() > 500
    assert np.array_equal(found, np.rint(product).clip(0, 255))


def test_a_cnn_of_integers_is_exported_as_a_torch_program(tmp_path):
    packed = pack_network(random_bncvl(0, image_shape=(1, 4, 5), channels=[3], convolutions=1, pool=1, dense=[]))
    pixels = random_pictures(packed)
    program = torch.export.load(export_torch(packed, tmp_path, pixels)["file"]).module()
    assert torch.equal(program(pixels), packed(pixels))


@pytest.mark.parametrize("form", [export_c, export_qonnx])
def test_real_activations_have_no_form_in_integers(form, tmp_path):
    network = BNCVLNet((1, 8, 8), 10, (4,), 1).eval()
    with pytest.raises(UserError, match=r"real activations.*\nallowed: .*activation_bits=8"):
        form(network, tmp_path, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
