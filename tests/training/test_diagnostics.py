"""Compares the statistics of trainer.diagnostics with bits and gradients that the test follows one by one."""

import numpy as np
import pytest
import torch
from helpers import trainer_of

from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.nn import BinaryLinear, named_bits
from bnn_exp.records import checkpoint
from bnn_exp.training.diagnostics import Diagnostics, dead_outputs
from bnn_exp.training.losses import squared_hinge

SMALL = ("model.hidden_size=16", "trainer.epochs=3", "trainer.batch_size=128", "trainer.diagnostics=true")
FIGURES = ("flip_ratio", "flips_back", "never_flipped", "ones_ratio", "gradient_snr", "dead_outputs")


def test_the_figures_follow_each_weight():
    layer, rng = BinaryLinear(40, 25), np.random.default_rng(0)
    watch, bits = Diagnostics(layer), layer.weight.detach().numpy().astype(int).copy()
    ever = np.zeros_like(bits)
    for epoch in range(3):
        times, gradients = np.zeros_like(bits), []
        for _ in range(7):
            which = rng.random(bits.shape) < 0.05
            bits = np.where(which, 1 - bits, bits)
            times += which
            gradients.append(rng.normal(0.3, 1 + epoch, bits.shape))
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(bits))
            layer.weight.grad = torch.from_numpy(gradients[-1]).float()
            watch.step()
        ever += times
        figures = {key: value["weight"] for key, value in watch.epoch([torch.tensor(times.sum())]).items()}
        noise = np.var(gradients, axis=0, ddof=1).sum()
        signal = (np.mean(gradients, axis=0) ** 2).sum() - noise / 7
        assert figures["flip_ratio"] == pytest.approx(times.sum() / 1000 / 7)
        assert figures["flips_back"] == pytest.approx((2 * (times // 2)).sum() / times.sum())
        assert figures["never_flipped"] == pytest.approx((ever == 0).mean())
        assert figures["ones_ratio"] == pytest.approx(bits.mean())
        assert figures["gradient_snr"] == pytest.approx(signal / noise, rel=1e-4)


def test_dead_outputs_are_those_that_never_change():
    network = BNCVLNet((1, 4, 4), 3, (5, 6), 1, dense=(7,), weights="bits").double()
    for norm, dead in zip([*network.convolutions, *network.dense], (2, 0, 3, 1), strict=True):
        with torch.no_grad():
            norm.norm.weight.fill_(0.01)
            norm.norm.weight[:dead] = 0
            norm.norm.bias.fill_(1)  # all inputs of the ReLU are positive
    assert list(dead_outputs(network, torch.rand(50, 1, 4, 4).double()).values()) == [2, 0, 3, 1]
    assert network.training


@pytest.mark.parametrize("optimizer", ["hypermask", "latent_adam"])
def test_a_run_has_them_and_goes_on_with_them(optimizer, tmp_path):
    def trainer():
        return trainer_of(*SMALL, f"optimizer={optimizer}")

    straight, stopped, resumed, batches = trainer(), trainer(), trainer(), iter(range(100))
    names = [name for name, _ in named_bits(straight.network)]
    expected = [straight.epoch() | straight.evaluate()[0] for _ in range(2)]
    assert stopped.epoch(stop=lambda: next(batches) == 5) is None
    checkpoint.save(tmp_path / "last.pt", stopped.state())
    resumed.load(checkpoint.load(tmp_path / "last.pt"))
    for line in expected:
        again = resumed.epoch() | resumed.evaluate()[0]
        assert {key: again[key] for key in FIGURES} == {key: line[key] for key in FIGURES}
        assert all(list(line[key]) == names for key in FIGURES)
        assert min(line["flips_back"].values()) >= 0 and max(line["never_flipped"].values()) <= 1


def test_the_squared_hinge_loss_is_its_sum():
    z, labels = torch.tensor([[2.0, -0.5, 0.5], [0.0, 1.5, -3.0]]), torch.tensor([0, 1])
    assert squared_hinge(z, labels).item() == pytest.approx((0 + 0.5**2 + 1.5**2 + 1**2 + 0 + 0) / 2)


def test_a_batch_that_grows(tmp_path):
    """The batch size grows by a factor per epoch: 64, 128, 256, 512. The schedule knows the number of steps."""
    growing = ("trainer.epochs=4", "trainer.batch_size=64", "trainer.final_batch_size=512")
    trainer = trainer_of(*SMALL, *growing, "delta=0.5", "optimizer.schedule=cosine")
    assert [trainer.batches.count(epoch) for epoch in range(4)] == [23, 12, 6, 3]  # batches of 1,437 samples
    deltas = [trainer.epoch()["delta"] for _ in range(4)]
    assert deltas[-1] == pytest.approx(0.25 * (1 + np.cos(np.pi * 43 / 44)))
