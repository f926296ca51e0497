"""A packed CNN as one compiled call gives the integers of its layers' definitions in plain torch."""

import copy
import os
import pickle
import platform
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cnns import random_pictures, random_vgg
from torch import Tensor, nn

from bnn_exp.bits import convolutions
from bnn_exp.bits.convolutions import to_rows
from bnn_exp.deploy import pack_network
from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.integers import Average, CodeLayer
from bnn_exp.deploy.mlp import LastLayer
from bnn_exp.nn.norm import affine_norm

SEEDS = range(8)


def random_code_network(seed: int) -> DeployedCNN:
    """Returns a packed CNN whose layers give codes: convolutions, an average, dense layers, and scores."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    shape = inputs, height, width = draw.choice([1, 3]), draw.randint(3, 11), draw.randint(3, 11)
    levels, layers, sizes = draw.choice([15, 255]), [], [draw.choice([1, 3, 5]) for _ in range(draw.randint(1, 4))]
    encoding = draw.choice(["boolean", "bipolar", "centred"])

    def code_layer(inputs: int, outputs: int, size: int, pool: int, first: bool) -> CodeLayer:
        bits = torch.randint(2, (outputs, size, size, inputs), dtype=torch.uint8)
        bias = torch.randint(-99, 100, (outputs,), dtype=torch.int32)
        multiplier = torch.randn(outputs) * draw.choice([0.01, 1]) / size / inputs**0.5
        padding = torch.randint(256, (inputs,)) if first else torch.zeros(inputs)
        return CodeLayer(bits, encoding, pool, padding.to(torch.uint8), bias, multiplier, levels)

    for i, size in enumerate(sizes):
        pool, outputs = draw.choice([1, 1, 2, 3]) if min(height, width) > 3 else 1, draw.choice([1, 5, 16, 17, 32, 33, 64, 65])
        layers.append(code_layer(inputs, outputs, size, pool, i == 0))
        inputs, height, width = outputs, height // pool, width // pool
    layers.append(Average(inputs, torch.tensor(1 / (height * width)), levels))
    for outputs in [draw.choice([7, 70, 256]) for _ in range(draw.randint(0, 2))]:
        layers.append(code_layer(inputs, outputs, 1, 1, False))
        inputs = outputs
    norm = affine_norm(nn.BatchNorm1d, torch.randn(10), torch.randn(10))
    rows = to_rows(torch.randint(2, (10, 1, 1, inputs), dtype=torch.uint8), codes=True)
    return DeployedCNN([*layers, LastLayer(rows, inputs, encoding, "codes", norm)], shape)


def by_definitions(network: DeployedCNN, pixels: Tensor) -> Tensor:
    """Returns the logits that the definitions in plain torch give."""
    with pytest.MonkeyPatch.context() as patch:
        from bnn_exp.deploy import integers

        for name in ("codes_of_codes", "bits_of_codes", "bits_of_bits", "average_codes"):
            patch.setattr(integers, name, getattr(convolutions, name).__wrapped__)
        return network._by_layers(pixels)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [random_code_network, lambda seed: pack_network(random_vgg(seed))], ids=["codes", "bits"])
def test_one_call_equals_the_layers(make, seed):
    network = make(seed)
    pixels = random_pictures(network, (1, 2, 7, 40)[seed % 4])
    expected = by_definitions(network, pixels)
    assert torch.equal(network(pixels), expected)
    assert torch.equal(network.scores(pixels), expected)
    assert (network.scores(pixels.numpy()) == expected.numpy()).all()
    assert torch.equal(network.predict(pixels), expected.argmax(1))
    assert network.predict(pixels[0].numpy()) == expected[0].argmax()
    assert network.compiled is not None


@pytest.mark.slow
def test_one_call_equals_the_layers_of_many_networks():
    for seed in range(100, 300):
        test_one_call_equals_the_layers(random_code_network, seed)


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("batch", [1, 3, 33])
def test_threads_share_the_pictures_or_the_rows(threads, batch, monkeypatch):
    from bnn_exp.bits.cpu import convolutions, network

    for module in (convolutions, network):
        monkeypatch.setattr(module, "THREAD_WORK", 1)
    packed = random_code_network(3)
    pixels = random_pictures(packed, batch)
    expected = by_definitions(packed, pixels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(packed(pixels), expected)
    finally:
        torch.set_num_threads(before)


def test_threads_may_call_one_network_at_the_same_time():
    packed = random_code_network(5)
    batches = [random_pictures(packed, 9) for _ in range(8)]
    expected = [packed._by_layers(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(packed, batches * 5)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 5, strict=True))


def test_a_copy_and_a_changed_network_compute_their_own_numbers():
    packed = random_code_network(6)
    pixels = random_pictures(packed)
    first = packed(pixels)
    copies = copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))
    packed.layers[-1].norm.bias.data += 1
    packed.layers[0].bias += 1000
    assert torch.equal(packed(pixels), by_definitions(packed, pixels))
    assert not torch.equal(packed(pixels), first)
    for each in copies:
        assert torch.equal(each(pixels), first)


def test_layers_that_do_not_fit_together_are_refused():
    packed = random_code_network(7)
    channels, *shape = packed.image_shape
    packed.image_shape = (channels + 1, *shape)
    with pytest.raises(ValueError, match="must be"):
        packed.predict(random_pictures(packed))
    from bnn_exp.bits.cpu.network import PictureNetwork

    packed = random_code_network(7)
    channels, height, width = packed.image_shape
    fields = [layer.fields(shape) for layer, shape in zip(packed.layers[:-1], packed.shapes()[:-1], strict=True)]
    with pytest.raises(ValueError, match="reads"):
        PictureNetwork((channels, height + 1, width), fields, packed.layers[-1].record())
    with pytest.raises(ValueError, match="must be"):
        PictureNetwork(packed.image_shape, fields, random_code_network(2).layers[-1].record())


@pytest.mark.parametrize("make", [random_code_network, lambda seed: pack_network(random_vgg(seed))], ids=["codes", "bits"])
def test_pictures_of_another_size_are_refused(make):
    """Borders, and the mean over the image, are those of one size."""
    packed = make(4)
    channels, height, width = packed.image_shape
    for shape in ((channels, height + 4, width), (channels, width + 1, height), (channels * height * width,)):
        pixels = torch.zeros(2, *shape, dtype=torch.uint8)
        for call in (packed, packed.predict):
            with pytest.raises(ValueError, match="must be uint8"):
                call(pixels)
        with pytest.raises(ValueError, match="must be uint8"):
            packed._network().classes(pixels[:, :1].float())


SELF = "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-m', 'not slow', '-k', 'one', sys.argv[1]]))"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have no such features")
def test_a_processor_without_avx512_computes_the_same(tmp_path):
    """The features stay those of a processor that rounds a product and a sum once, as torch does here."""
    features = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+popcnt", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SELF, __file__], env=os.environ | features, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
