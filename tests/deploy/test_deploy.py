import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import plain_config, with_any_norms

from bnn_exp.data import sources
from bnn_exp.deploy import load_packed, pack_network
from bnn_exp.errors import UserError
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import binarize
from bnn_exp.records.model import save_model


def hidden_bits(network: MLP, x: torch.Tensor) -> list[torch.Tensor]:
    """Returns the bits of every hidden layer of a float network, each bool [batch, size]."""
    h, found = x.flatten(1), []
    for layer, norm in zip(network.layers[:-1], network.norms[:-1], strict=True):
        y = norm(layer(h))
        found.append(y >= 0)
        h = binarize(y, network.encoding, network.window)
    return found


def unpack_rows(packed: torch.Tensor, size: int) -> torch.Tensor:
    return (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)[:, :size] == 1


@pytest.mark.parametrize("encoding", ["boolean", "bipolar", "centred"])
@pytest.mark.parametrize("seed", range(12))
def test_every_hidden_bit_and_every_logit_is_that_of_the_float_network(encoding, seed):
    torch.manual_seed(seed)
    inputs, hidden, classes, layers = (int(torch.randint(1, n, ())) for n in (130, 150, 12, 6))
    affine, binarize_logits = seed % 4 != 3, seed % 3 == 2
    network = with_any_norms(MLP(inputs, classes, hidden, layers, encoding, 1.0, binarize_logits, affine))
    packed = pack_network(network)
    for batch in (1, 5, 200):
        x = torch.randint(0, 256, (batch, inputs), dtype=torch.uint8)
        h = x
        for layer, expected in zip(packed.layers, hidden_bits(network, x), strict=False):
            h = layer(h)
            assert torch.equal(unpack_rows(h, hidden), expected)
        assert torch.equal(packed(x), network(x))
    assert packed(torch.zeros(0, inputs, dtype=torch.uint8)).shape == (0, classes)


@pytest.mark.parametrize("encoding", ["boolean", "bipolar", "centred"])
def test_a_neuron_decides_alike_for_every_input_there_is(encoding):
    """A hidden layer gets all 2⁹ inputs, and a first layer all 2¹⁶ pairs of pixels."""
    torch.manual_seed(0)
    network = with_any_norms(MLP(2, 3, 9, 3, encoding))
    first, second, _ = pack_network(network).layers
    pixels = torch.cartesian_prod(*[torch.arange(256, dtype=torch.uint8)] * 2)
    assert torch.equal(unpack_rows(first(pixels), 9), network.norms[0](network.layers[0](pixels)) >= 0)
    bits = torch.cartesian_prod(*[torch.arange(2, dtype=torch.uint8)] * 9)
    values = binarize(bits.float() - 0.5, encoding)
    rows = torch.nn.functional.pad(bits, (0, 7)).unflatten(1, (2, 8))
    packed = (rows << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    assert torch.equal(unpack_rows(second(packed), 9), network.norms[1](network.layers[1](values)) >= 0)


@pytest.mark.parametrize("normalization", ["sample", "batch", "channel"])
@pytest.mark.parametrize(("weights", "encoding"), [("latent", "centred"), ("bits", "boolean"), ("latent", "bipolar")])
def test_a_cnn_keeps_its_weights_as_bits_and_its_numbers(normalization, weights, encoding):
    torch.manual_seed(1)
    shape = {"normalization": normalization, "weights": weights, "encoding": encoding}
    network = BNCVLNet((3, 20, 20), 7, (8, 12), 2, **shape, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    network.train()(torch.rand(50, 3, 20, 20))
    network.eval()
    packed = pack_network(network)
    convolutions = [m for m in packed.convolutions if hasattr(m, "packed")]
    assert len(convolutions) == 4 and all(m.packed.dtype == torch.uint8 and not list(m.parameters(False)) for m in convolutions)
    with torch.no_grad():
        for batch in (1, 5, 40):
            x = torch.randint(0, 256, (batch, 3, 20, 20), dtype=torch.uint8)
            a, b = network(x), packed(x)
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()
        h = torch.rand(2, 3, 20, 20)
        assert torch.equal(packed.convolutions[0](h), network.convolutions[0](h))


def test_a_packed_network_composes_with_torch():
    torch.manual_seed(0)
    network = with_any_norms(MLP(30, 4, 70, 3))
    packed, x = pack_network(network), torch.randint(0, 256, (5, 30), dtype=torch.uint8)
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), network(x))


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(UserError, match="running_stats=false"):
        pack_network(MLP(8, 3, 5, 2, running_stats=False))
    with pytest.raises(UserError, match=r"weights=float"):
        pack_network(BNCVLNet((1, 8, 8), 3, (4,), 1, weights="float"))
    packed = pack_network(MLP(8, 3, 5, 2))
    for wrong in (torch.rand(2, 8), torch.zeros(2, 9, dtype=torch.uint8)):
        with pytest.raises(ValueError):
            packed(wrong)


DIGITS = tuple("0123456789")


def test_real_digits_by_a_network_of_a_file(tmp_path):
    """An MLP of 3×1024 neurons has a small file. The packed network loaded from the file gives exactly the same logits."""
    torch.manual_seed(0)
    images = torch.from_numpy(sources.read("digits").test_images)
    network = MLP(64, 10, 1024, 4)
    network.train()(images)
    save_model(tmp_path / "model.safetensors", network.eval(), plain_config("model.hidden_size=1024"), (1, 8, 8), DIGITS)
    packed, about = load_packed(tmp_path)
    assert torch.equal(packed(images), network(images)) and about["classes"] == list(DIGITS)
    held = sum(b.numel() * b.element_size() for b in (*packed.buffers(), *packed.parameters()))
    assert held < sum(4 * p.numel() for p in network.parameters()) / 25


def test_the_file_of_an_mnist_network_is_a_bit_a_weight_and_a_float_a_real(tmp_path):
    network, file = MLP(784, 10, 1024, 4), tmp_path / "model.safetensors"
    save_model(file, network, plain_config("model.hidden_size=1024", "dataset=mnist"), (1, 28, 28), DIGITS)
    weights, reals = 784 * 1024 + 2 * 1024**2 + 10 * 1024, 2 * (3 * 1024 + 10)
    assert file.stat().st_size <= 1.05 * (weights / 8 + reals * 4)


def test_no_prediction_of_mnist_differs(mnist_folder):
    torch.manual_seed(0)
    arrays = sources.read("mnist", "ylecun/mnist", str(mnist_folder))
    network = MLP(784, 10, 1024, 4).train()
    for begin in range(0, 2000, 500):  # running statistics of real images
        network(torch.from_numpy(arrays.train_images[begin : begin + 500]))
    packed, images = pack_network(network.eval()), torch.from_numpy(arrays.test_images)
    with torch.no_grad():
        assert len(images) == 10000 and torch.equal(packed(images), network(images))


MEMORY = """
import sys
import torch
from bnn_exp.deploy import load_packed
from bnn_exp.records.model import load_model

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

load = {"packed": load_packed, "float": load_model}[sys.argv[1]]
load(sys.argv[2])
before = resident()
network = load(sys.argv[3])
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_packed_network_takes_a_twentieth_of_the_memory(tmp_path):
    for name, size in (("small", 16), ("big", 8192)):
        config = plain_config(f"model.hidden_size={size}", "dataset=mnist")
        save_model(tmp_path / name, MLP(784, 10, size, 4), config, (1, 28, 28), DIGITS)
    resident = {}
    for kind in ("packed", "float"):
        command = [sys.executable, "-c", MEMORY, kind, str(tmp_path / "small"), str(tmp_path / "big")]
        resident[kind] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert resident["packed"] < resident["float"] / 20, resident
