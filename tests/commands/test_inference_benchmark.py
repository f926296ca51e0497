"""benchmark=inference: how times are taken, and the content of its result."""

import json

import pytest
import torch
from helpers import plain_config, use_tapes

from bnn_exp.commands.benchmark import inference_speed
from bnn_exp.commands.benchmark.float_ways import FloatWays
from bnn_exp.commands.benchmark.layer_times import layer_times
from bnn_exp.commands.benchmark.timing import time_calls
from bnn_exp.deploy import pack_network
from bnn_exp.errors import UserError
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.models.vgg import VGG
from bnn_exp.records.model import save_model


def test_times_are_taken_in_turn(monkeypatch):
    """The test replaces the clock: a call of a takes 1 s and a call of b 2 s, except for 10 s in one of five rounds."""
    now, calls = [0.0], []

    def way(name: str, seconds: list[float]):
        def call():
            calls.append(name)
            now[0] += seconds.pop(0)

        return call

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    times = time_calls({"a": way("a", [1.0] * 7), "b": way("b", [2.0] * 5 + [10.0, 2.0])}, torch.device("cpu"), rounds=5)
    assert calls == [*"aabb", *"ab" * 5]  # a warm call and an estimate of each, then the rounds
    assert (times["a"]["median"], times["b"]["median"]) == (1.0, 2.0)
    assert times["a"]["low"] == times["a"]["high"] == 1.0 and times["b"]["high"] > 2.0


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.slow
def test_a_benchmark_is_plain_data(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_speed, "LAYERS", ((784, 64, 2), (64, 70, 1)))
    monkeypatch.setattr("bnn_exp.commands.benchmark.timing.WINDOW", 1e-4)
    if kind == "cnn":  # new processes take seconds
        monkeypatch.setattr("bnn_exp.commands.benchmark.inference_memory.measure", lambda *_: None)
    network = MLP(16, 3, 9, 3) if kind == "mlp" else BNCVLNet((1, 4, 4), 3, (2,), 1, dense=(3,))
    shape = ["model.hidden_size=9", "model.num_layers=3"] if kind == "mlp" else ["model=bncvl", "model.channels=[2]"]
    shape += [] if kind == "mlp" else ["model.convolutions=1", "model.dense=[3]"]
    save_model(tmp_path / "model.safetensors", network, plain_config(*shape), (1, 4, 4), ("a", "b", "c"))
    threads = torch.get_num_threads()
    found = inference_speed.measure(tmp_path, torch.device("cpu"), batches=(1, 3), rounds=2)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(found)) == found
    ways = {row["way"] for row in found["network"]}
    assert {"packed", "packed, predict", "torch fp32"} <= ways and {row["batch"] for row in found["network"]} == {1, 3}
    assert len(found["network"]) == 2 * len(ways)
    if kind == "mlp":
        assert [(row["kind"], row["way"]) for row in found["layers"]] == [
            (kind, way) for kind in ("pixels", "bits") for way in ("packed", "torch fp32")
        ]
    else:
        assert {"torch bf16", "torch int8"} <= ways and [row["layer"] for row in found["layers"]] == [1, 2, 3, 4]
    for row in found["network"] + (found["layers"] if kind == "mlp" else []):
        assert row["low"] <= row["median"] <= row["high"] and row["images_per_second"] * row["median"] == pytest.approx(
            row["batch"]
        )
    assert found["files"]["model.safetensors"] == (tmp_path / "model.safetensors").stat().st_size
    if found["memory"]["packed"] is not None:
        for sizes in found["memory"].values():
            assert 0 < sizes["imported"] <= sizes["loaded"] <= sizes["peak"]
    with pytest.raises(UserError, match="no such file"):
        inference_speed.measure(tmp_path / "none", torch.device("cpu"))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_torch_in_bf16_computes_in_bf16_and_is_recorded(kind, monkeypatch):
    tapes = use_tapes(monkeypatch)
    network = MLP(16, 3, 9, 3) if kind == "mlp" else BNCVLNet((1, 4, 4), 3, (2,), 1, dense=(3,))
    pixels = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    ways = FloatWays(network.eval()).recorded()
    with torch.inference_mode():
        found = {name: [way(pixels).clone() for _ in range(3)] for name, way in ways.items()}
        expected = network(pixels / 255)
    assert len(tapes) == 2 and {name: logits[-1].dtype for name, logits in found.items()} == {
        "torch fp32": torch.float32,
        "torch bf16": torch.bfloat16,
    }
    products = {str(note[0]): {x.dtype for x in note[1] if isinstance(x, torch.Tensor)} for note in tapes[1].notes}
    assert all(
        kinds == {torch.bfloat16} for name, kinds in products.items() if "addmm" in name or "conv" in name or "mm" in name
    )
    assert all(torch.allclose(logits, expected, atol=1e-5) for logits in found["torch fp32"])


def test_a_layer_on_a_gpu_is_measured_with_many_weights(monkeypatch):
    """The graph holds a product for each copy of the weights; times and floor are those of one product."""
    tapes, weights, x = use_tapes(monkeypatch), torch.randn(3, 4), torch.randn(2, 4)
    call = inference_speed._of_many_weights(torch.nn.functional.linear, x, weights)
    for _ in range(3):
        assert torch.equal(call(), x @ weights.T)
    products = [note for note in tapes[0].notes if "mm" in str(note[0]) or "linear" in str(note[0])]
    assert len(products) == inference_speed.WEIGHTS and len({note[1][1].data_ptr() for note in products}) == len(products)
    row = {"median": 32.0, "low": 16.0, "high": 48.0, "images_per_second": 1.0}
    one = inference_speed._of_one(row, 100.0, torch.nn.functional.linear, x, weights)
    assert (one["median"], one["low"], one["high"], one["images_per_second"]) == (2.0, 1.0, 3.0, 16.0)
    assert one["floor"] == 4 * (12 + 8 + 6) / 100


def test_the_onnx_graph_to_compare_with_is_the_float_network():
    pytest.importorskip("onnxruntime")
    from helpers import random_mlp

    from bnn_exp.commands.benchmark.float_onnx import float_model
    from bnn_exp.deploy.exports.to_onnx import session
    from bnn_exp.nn.norm import make_affine, running_norms, scale_and_shift

    for seed in range(3):
        network, x = random_mlp(seed)
        for _, norm in running_norms(network):
            scale, shift = scale_and_shift(norm)
            make_affine(norm)
            norm.load_state_dict({"weight": scale, "bias": shift}, strict=False)
        run = session(float_model(network, tuple(x.shape[1:]), tuple("0123456789")).SerializeToString())
        same = (run(x).argmax(1) == network(x).argmax(1)).float().mean()
        assert same > 0.97  # the sums of pixels are rounded, so a few bits may differ


def test_onnxruntime_in_int8_predicts_as_in_fp32():
    pytest.importorskip("onnxruntime.quantization")
    from helpers import random_mlp

    from bnn_exp.commands.benchmark import inference_onnx
    from bnn_exp.deploy import pack_network

    network, x = random_mlp(1)
    about = {"image_shape": x.shape[1:], "classes": "0123456789"}
    ways = inference_onnx.sessions(network, pack_network(network), about, 1)
    logits = [ways[f"onnxruntime {kind}"](x.numpy()) for kind in ("fp32", "int8")]
    assert (logits[0].argmax(1) == logits[1].argmax(1)).mean() > 0.9  # int8 rounds the pixels' quotients by 255


def cnns():
    pixels = {"mean": (100 / 255,), "std": (64 / 255,)}
    return {
        "bncvl": BNCVLNet((1, 8, 8), 3, (4, 5), 1, dense=(6,), **pixels),
        "bncvl of codes": BNCVLNet((1, 8, 8), 3, (4, 5), 1, dense=(6,), weights="bits", activation_bits=8, **pixels),
        "vgg": VGG((1, 8, 8), 3, (4, 12), 1, **pixels),
    }


@pytest.mark.parametrize("name", cnns())
def test_torch_computes_the_float_twin_of_a_cnn_in_int8_too(name):
    """The quantized twin gives the logits of the twin, up to the rounding of 8 bits."""
    network, pixels = cnns()[name].eval(), torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)):
        norm.running_var.fill_(9.0)
    with torch.inference_mode():
        found = {way: call(pixels).float() for way, call in FloatWays(network).on_cpu((1, 8, 8)).items()}
    assert list(found) == ["torch fp32", "torch bf16", "torch int8"]
    spread = found["torch fp32"].std()
    for way in ("torch bf16", "torch int8"):
        assert (found[way] - found["torch fp32"]).std() < 0.2 * spread


def test_torch_without_kernels_for_int8_has_the_other_ways(monkeypatch):
    monkeypatch.setattr("bnn_exp.commands.benchmark.float_ways.ENGINE", "of another processor")
    assert list(FloatWays(cnns()["vgg"].eval()).on_cpu((1, 8, 8))) == ["torch fp32", "torch bf16"]


@pytest.mark.parametrize("name", cnns())
def test_every_layer_of_a_packed_cnn_is_measured(name, monkeypatch):
    monkeypatch.setattr("bnn_exp.commands.benchmark.timing.WINDOW", 1e-5)
    rows = layer_times(pack_network(cnns()[name].eval()), batch=2, rounds=2)
    sizes = {"bncvl": [64 * 9 * 4, 16 * 9 * 4 * 5, 0, 5 * 6, 6 * 3], "vgg": [64 * 9 * 4, 16 * 9 * 4 * 12, 2 * 2 * 12 * 3]}
    assert [row["multiply_adds"] for row in rows] == sizes[name.split()[0]]
    assert sum(row["share"] for row in rows) == pytest.approx(1) and json.loads(json.dumps(rows)) == rows
    assert all((row["torch"] is None) == (row["multiply_adds"] == 0) for row in rows)
    kind = {"bncvl": "real", "bncvl of codes": "codes", "vgg": "bits"}[name]
    assert rows[0]["reads"] == "pixels" and rows[0]["gives"] == f"4×4×4 {kind}" and rows[1]["reads"] == rows[0]["gives"]
    assert rows[-1]["reads"] == {"bncvl": "6 real", "bncvl of codes": "6 codes", "vgg": "48 bits"}[name]
