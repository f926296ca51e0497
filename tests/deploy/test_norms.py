"""Tests that a loaded network can train on, with the BatchNorm statistics of its run, and has the same logits before."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F

from bnn_exp import HyperMask, binary_parameters, load_model, load_packed, pack_network, real_parameters
from bnn_exp.data import sources
from bnn_exp.errors import UserError

SMALL = ("trainer=smoke", "trainer.epochs=2")
RUNS = {
    "mlp": (*SMALL, "model.hidden_size=8"),
    "without parameters": (*SMALL, "model.hidden_size=8", "model.batch_norm.affine=false"),
    "vgg": (*SMALL, "model=vgg", "model.channels=[2]", "dataset.limit=64"),
    "latents": (*SMALL, "model.hidden_size=8", "optimizer=latent_adam"),
}


@pytest.fixture(scope="module")
def rows():
    digits = sources.read("digits")
    return torch.from_numpy(digits.train_images[:256]), torch.from_numpy(digits.train_labels[:256]).long()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("file", ["", "model.safetensors", "checkpoints/last.pt"])
def test_a_loaded_network_goes_on_as_its_run_would(name, file, rows, copy_of_run, tmp_path):
    run = copy_of_run(tmp_path / "run", *RUNS[name])
    network, _ = load_model(run / file)
    x, labels = rows
    with torch.no_grad():
        before, parameters = network(x), list(network.parameters())
        assert network.train().eval()(x).equal(before)
        assert all(p is q for p, q in zip(network.parameters(), parameters, strict=True))
    saved = torch.load(run / "checkpoints/last.pt", weights_only=True)["network"]
    statistics = {key: value for key, value in saved.items() if "running" in key}
    assert statistics and all(network.state_dict()[key].equal(value) for key, value in statistics.items())
    network.train()
    rule, real = HyperMask(list(binary_parameters(network)), 0.02), torch.optim.Adam(p for _, p in real_parameters(network))
    first = None
    for _ in range(4):
        loss = F.cross_entropy(network(x), labels)
        first = first or float(loss.detach())
        network.zero_grad()
        loss.backward()
        rule.step()
        real.step()
    assert float(loss.detach()) < first + 0.5 and sum(map(int, rule.flips)) > 0
    with torch.no_grad():
        assert pack_network(network.eval())(x[:8]).shape == (8, 10) if name == "mlp" else True


def test_copies_of_a_loaded_network_train_too(rows, copy_of_run, tmp_path):
    network, _ = load_model(copy_of_run(tmp_path / "run", *RUNS["mlp"]))
    other = copy.deepcopy(network)
    for one in (network, other):
        one.train()
        assert one.norms[0].running_var.ne(1).any() and one.training and one.norms[0].training
    assert other.norms[0] is not network.norms[0]


def test_a_file_alone_says_what_it_lacks(copy_of_run, tmp_path, rows):
    run = copy_of_run(tmp_path / "run", *RUNS["mlp"])
    shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")
    network, _ = load_model(tmp_path / "alone.safetensors")
    with pytest.raises(UserError, match=r"alone\.safetensors: it has no statistics of BatchNorm"):
        network.train()
    assert network.eval()(rows[0][:2]).shape == (2, 10)  # evaluation needs no statistics


def test_a_checkpoint_of_another_network_is_not_taken(copy_of_run, tmp_path):
    run = copy_of_run(tmp_path / "run", *RUNS["mlp"])
    network, _ = load_model(run)
    other = copy_of_run(tmp_path / "other", *RUNS["mlp"], "seed=1")
    shutil.copy(other / "checkpoints/last.pt", run / "checkpoints/last.pt")
    with pytest.raises(UserError, match=r"last\.pt: the checkpoint of another network"):
        network.train()


@pytest.mark.parametrize("options", [("model.hidden_size=8",), ("model=bncvl", "model.channels=[2]", "dataset.limit=64")])
def test_a_packed_network_says_that_it_only_evaluates(options, copy_of_run, tmp_path, rows):
    network, _ = load_packed(copy_of_run(tmp_path / "run", *SMALL, *options))
    before = network(rows[0][:4])
    with pytest.raises(UserError, match=r"only evaluates\nallowed: bnn_exp\.load_model"):
        network.train()
    assert network.eval()(rows[0][:4]).equal(before)
