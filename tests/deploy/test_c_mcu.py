"""The C export on microcontrollers in QEMU: it gives the answers and the scores of the packed network."""

import sys
from pathlib import Path

import pytest
import torch
from cnns import random_bncvl, random_pictures, random_vgg
from helpers import random_mlp

from bnn_exp.deploy import pack_network

sys.path.append(str(Path(__file__).parents[2] / "scripts/mcu"))
import measure

pytestmark = pytest.mark.skipif(bool(measure.missing_tools()), reason=f"not installed: {measure.missing_tools()}")


def assert_equal_answers(device, network, images, folder) -> measure.Measured:
    packed = pack_network(network)
    found = measure.measure(device, packed, images, folder)
    assert torch.equal(found.scores, measure.exact_scores(packed, images))
    assert torch.equal(found.classes, found.scores.argmax(1))
    return found


@pytest.mark.parametrize("device", measure.DEVICES, ids=lambda device: device.processor)
def test_a_network_on_a_microcontroller(device, tmp_path):
    found = assert_equal_answers(device, *(given := random_mlp(1)), tmp_path)
    assert 0 < found.stack <= 512  # NETWORK_STACK
    assert found.variables < 4000 and found.instructions > given[1][0].numel()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("random", [random_bncvl, random_vgg])
@pytest.mark.parametrize("device", measure.DEVICES, ids=lambda device: device.processor)
def test_a_cnn_on_a_microcontroller(device, random, seed, tmp_path):
    network = random(seed)
    found = assert_equal_answers(device, network, random_pictures(network, 20), tmp_path)
    assert found.stack <= 512
