"""Packed networks on a GPU: CUDA graphs, and the same numbers as the float network on a CPU.

The tests run on a CPU: tapes replace CUDA graphs, and Triton's interpreter runs the kernels.
"""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import use_tapes
from torch import nn

from bnn_exp.bits import operators, reference
from bnn_exp.deploy import pack_network
from bnn_exp.deploy.mlp import DeployedMLP
from bnn_exp.deploy.replayed import MOST
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import device
from bnn_exp.nn import operators as on_gpu

ON_HOST = device.on_host


@pytest.fixture
def tapes(monkeypatch):
    """Makes all code treat tensors on the CPU as if they were on a GPU. Returns the list of all tapes that were recorded.

    Operators on bits are computed by their definitions, behind torch's dispatcher, where a tape sees them.
    """
    monkeypatch.setattr(device, "on_host", lambda where: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(operators, "_compiling", lambda: True)
    monkeypatch.setattr(operators, "_on_cpu", lambda name: getattr(reference, name))
    return use_tapes(monkeypatch)


def both(*options, **named) -> tuple[Callable, nn.Module]:
    """Returns an MLP for 37 pixels whose logits vary with the pixels: the float network on a CPU, and its packed form."""
    network = MLP(37, 5, *options, **named)
    for norm in network.norms:
        norm.momentum = 1.0
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    def logits(x: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(device, "on_host", ON_HOST)
            return network(x)

    network.train()
    logits(pixels(200))
    network.eval()
    assert len(logits(pixels(64)).unique(dim=0)) > 32
    return logits, pack_network(network)


def pixels(rows: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 37), dtype=torch.uint8)


@pytest.mark.parametrize(("encoding", "rows"), [("boolean", 1), ("bipolar", 17), ("centred", 1)])
def test_an_mlp_gives_the_logits_of_a_cpu_by_one_operator_for_each_layer(encoding, rows, monkeypatch, triton_runs, tapes):
    network, packed = both(20, 3, encoding)
    monkeypatch.setattr(on_gpu, "kernels_everywhere", True)
    packed.to("cpu")  # lays the weights out for a GPU
    x = [pixels(rows) for _ in range(3)]
    found = [packed(each) for each in x]
    assert all(torch.equal(a, network(b)) for a, b in zip(found, x, strict=True))  # a replay overwrites no result
    (tape,) = tapes
    names = [str(note[0]) for note in tape.notes]
    launched = [name for name in names if name.startswith("bnn_exp.")]
    assert launched == ["bnn_exp.pixel_steps.default", "bnn_exp.bit_steps.default", "bnn_exp.scores.default"]
    assert set(names) - set(launched) <= {"aten.view.default"}  # no other kernel


def test_an_mlp_of_one_layer_takes_pixels(monkeypatch, triton_runs, tapes):
    network, packed = both(20, 1)
    monkeypatch.setattr(on_gpu, "kernels_everywhere", True)
    x = pixels(2)
    assert torch.equal(packed(x), network(x))


def test_a_cnn_is_recorded_too(tapes):
    network = BNCVLNet((1, 8, 8), 3, (4,), 1, dense=(5,)).eval()
    packed = pack_network(network)
    for _ in range(4):
        x = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
        torch.testing.assert_close(packed(x), network(x))
    assert len(tapes) == 1


def test_graphs_are_kept_for_a_few_shapes(tapes):
    network, packed = both(20, 3)
    for rows in range(1, MOST + 3):
        for _ in range(3):
            x = pixels(rows)
            assert torch.equal(packed(x), network(x))
    assert len(tapes) == MOST


def test_graphs_serve_with_and_without_inference_mode(tapes):
    network, packed = both(20, 3)
    for mode in (True, False, True, False, True):
        x = pixels(2)
        with torch.inference_mode(mode):
            assert torch.equal(packed(x), network(x))
    assert len(tapes) == 1


def test_a_move_and_a_copy_begin_without_graphs(tapes):
    network, packed = both(20, 3)
    for change in (lambda p: p, lambda p: p.to("cpu"), copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))):
        other, count = change(packed), len(tapes)
        for _ in range(3):
            x = pixels(2)
            assert torch.equal(other(x), network(x))
        assert len(tapes) == count + 1


def test_what_cannot_be_recorded_is_computed_as_usual(tapes, monkeypatch):
    network, packed = both(20, 3)
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)

    def calls(packed) -> None:
        for _ in range(3):
            x = pixels(2)
            assert torch.equal(packed(x), network(x))

    calls(compiled)
    with torch.autocast("cpu", torch.bfloat16):
        x = pixels(2)
        for _ in range(3):
            packed(x)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        calls(packed)
    packed(x)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "another stream")
    calls(packed)
    assert tapes == []


def test_a_failed_recording_is_said_once(tapes, monkeypatch, caplog):
    original = DeployedMLP._logits
    monkeypatch.setattr(DeployedMLP, "_logits", lambda self, x: original(self, x) + 0 * x.sum().item())
    network, packed = both(20, 3)
    for _ in range(4):
        x = pixels(2)
        assert torch.equal(packed(x), network(x))
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "not recorded as a CUDA graph" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("encoding", ["boolean", "bipolar", "centred"])
@pytest.mark.parametrize("rows", [1, 8, 16, 17, 300])
def test_a_gpu_gives_the_logits_of_a_cpu(rows, encoding):
    network, packed = both(1000, 3, encoding)
    packed.to("cuda")
    for _ in range(4):
        x = pixels(rows)
        assert torch.equal(packed(x.cuda()).cpu(), network(x))
    assert len(packed.replays.graphs.recorded) == 1


@pytest.mark.gpu
def test_a_packed_network_is_evaluated_and_predicts_on_a_gpu(bnn_train):
    small = "model.hidden_size=64", "dataset.limit=300", "trainer.epochs=1", "hydra.run.dir=run"
    assert bnn_train("device=cuda", *small).code == 0
    done = bnn_train("task=evaluate", "from=run", "device=cuda")
    assert done.code == 0, done.err
    assert bnn_train("task=predict", "from=run", "input=run/samples.png", "device=cuda").code == 0
