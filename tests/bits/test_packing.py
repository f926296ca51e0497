"""Packing, the state of a network with packed bits, and the model file that holds it."""

import math

import pytest
import torch

from bnn_exp.bits import bits_sha256, load_state, pack, packed_state, unpack
from bnn_exp.models.mlp import MLP
from bnn_exp.records.model import load_model, save_model


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (5, 9), (4, 3, 3, 3), (2, 64), (7, 785), (1, 0)])
def test_bit_j_of_a_row_is_bit_j_mod_8_of_byte_j_div_8(shape):
    bits = torch.full(shape, 0.5).bernoulli_()
    packed = pack(bits)
    assert packed.dtype == torch.uint8 and packed.shape == (shape[0], math.ceil(math.prod(shape[1:]) / 8))
    for row, packed_row in zip(bits.flatten(1).tolist(), packed.tolist(), strict=True):
        assert [(packed_row[j // 8] >> (j % 8)) & 1 for j in range(len(row))] == row
    assert torch.equal(unpack(packed, shape), bits)


def test_tensors_that_are_not_packed_bits_of_the_shape_are_refused():
    packed = pack(torch.ones(3, 9))
    for wrong in ((3, 17), (4, 9), (3, 8)):
        with pytest.raises(ValueError, match="does not hold"):
            unpack(packed, wrong)
    with pytest.raises(ValueError, match="does not hold"):
        unpack(packed.float(), (3, 9))


def test_a_state_goes_into_another_network_whole():
    a, b = MLP(30, 10, 20), MLP(30, 10, 20)
    assert bits_sha256(a) != bits_sha256(b)
    load_state(b, packed_state(a))
    assert bits_sha256(a) == bits_sha256(b)
    x = torch.rand(5, 30)
    assert torch.equal(a.eval()(x), b.eval()(x))
    with pytest.raises((ValueError, RuntimeError)):
        load_state(MLP(30, 10, 21), packed_state(a))


@pytest.fixture(scope="module")
def config():
    """Returns the plain values of a configuration that describes the network of these tests."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from bnn_exp.cli import CONF
    from bnn_exp.config import versions

    shape = ["model.hidden_size=64", "model.num_layers=3", "model.encoding=boolean", "model.window=null"]
    with initialize_config_dir(str(CONF), **versions.HYDRA):
        return OmegaConf.to_container(compose("config", shape), resolve=True)


def test_a_model_file_holds_one_bit_a_weight_and_all_that_rebuilds_the_network(tmp_path, config):
    network = MLP(64, 10, 64, 3, "boolean", None)
    network(torch.rand(16, 64))  # changes the running statistics
    file = tmp_path / "model.safetensors"
    save_model(file, network, config, (1, 8, 8), tuple("0123456789"))
    again, about = load_model(tmp_path)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(again(x), network.eval()(x))
    assert about["config"] == config and about["image_shape"] == [1, 8, 8] and about["classes"] == list("0123456789")
    assert not list(tmp_path.glob(".*"))
    weights = 64 * 64 + 64 * 64 + 64 * 10
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    norms = (64 + 64 + 10) * 2 * 4  # a scale and a shift in fp32
    assert file.stat().st_size - header == weights // 8 + norms
