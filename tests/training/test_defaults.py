"""Tests default values: they follow the settings that they depend on, and networks learn with them from the first epochs."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import ROOT, plain_config, rest_slow, settings_of, trainer_of

from bnn_exp.optim import CEMA, Bold, Bop, Bop2, Counter, HyperMask, LatentAdam, LatentSGD, build_real
from bnn_exp.optim.schedules import LAST, factor

RULES = {Counter: "delta", HyperMask: "delta", Bop: "gamma", Bop2: "gamma", CEMA: "alpha", Bold: "eta"}


def test_geometric_falls_by_the_same_factor_each_step_to_a_thousandth():
    factors = [factor("geometric", step, 10) for step in range(12)]
    assert factors[0] == 1 and factors[10] == factors[11] == LAST == pytest.approx(0.001)
    assert [b / a for a, b in pairwise(factors[:11])] == pytest.approx([10**-0.3] * 10)


@pytest.mark.parametrize("rule", RULES)
def test_the_strength_of_every_rule_can_fall_geometrically(rule):
    w = torch.nn.Parameter(torch.ones(4, 5))
    optimizer = rule([w], **{RULES[rule]: 0.5}, schedule="geometric", total_steps=6)
    for step in range(6):
        w.grad = torch.ones(4, 5)
        optimizer.step()
        assert optimizer.strengths[RULES[rule]] == pytest.approx(0.5 * 1000 ** (-step / 6))


@pytest.mark.parametrize("kind", [LatentAdam, LatentSGD])
def test_the_rate_of_latents_can_fall_geometrically(kind):
    p = torch.nn.Parameter(torch.randn(4, 5))
    optimizer = kind([p], 0.2, schedule="geometric", total_steps=3)
    for step in range(3):
        p.grad = torch.ones(4, 5)
        optimizer.step()
        assert optimizer.strengths["lr"] == pytest.approx(0.2 * 10**-step)


def test_the_rate_of_real_parameters_can_fall_geometrically():
    [real] = build_real(settings_of("real_optimizer.schedule=geometric").real_optimizer, torch.nn.Linear(2, 2), 3)
    for step in range(4):
        assert real.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 10**-step)
        real.apply()
        real.count()


@pytest.mark.parametrize(
    ("bits", "delta", "schedule"), [(1, 0.01, "cosine"), (2, 0.02, "cosine"), (4, 0.05, "linear"), (8, 0.02, "linear")]
)
def test_a_counter_of_n_bits_is_the_preset_of_n_bits(bits, delta, schedule):
    """The expected values are those of the table in docs/rules.md."""
    found = plain_config("optimizer=counter", f"optimizer.bits={bits}")["optimizer"]
    assert (found["delta"], found["schedule"]) == (delta, schedule)
    if bits < 8:
        assert plain_config(f"optimizer=counter_{bits}bit")["optimizer"] == found
        assert plain_config(f"optimizer=counter_{bits}bit", "optimizer.bits=8")["optimizer"]["delta"] == 0.02
    said = ("optimizer=counter", f"optimizer.bits={bits}", "delta=0.3", "optimizer.schedule=geometric")
    found = plain_config(*said)["optimizer"]
    assert (found["delta"], found["schedule"]) == (0.3, "geometric")


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_a_counter_of_any_bits_has_a_default(bits):
    assert 0.02 <= settings_of("optimizer=counter", f"optimizer.bits={bits}").optimizer.delta <= 0.05


def test_what_a_mask_reads_follows_the_mask():
    found = {}
    for mask in ("top", "random", "ewm"):
        optimizer = settings_of("optimizer=hypermask", f"optimizer.mask={mask}").optimizer
        found[mask] = (optimizer.delta, optimizer.scale, optimizer.schedule)
    assert found["top"] == (0.1, "factored", "geometric")
    assert found["random"] == (0.01, "tensor", "cosine") and found["ewm"][2] == "cosine"
    said = plain_config("optimizer=hypermask", "optimizer.mask=random")
    assert plain_config("optimizer=hypermask_random")["optimizer"] == said["optimizer"]
    preset = plain_config("optimizer=hypermask_factored", "optimizer.mask=random")["optimizer"]
    assert (preset["delta"], preset["scale"]) == (0.02, "factored")  # the values of a preset stay


@pytest.mark.parametrize("rule", ["latent_adam", "latent_sgd"])
def test_the_rate_of_latents_follows_the_model(rule):
    """The latent weights of an MLP begin as N(0, 1) and need a larger rate. Others need a smaller one."""
    preset = plain_config(f"optimizer={rule}_mlp")["optimizer"]
    assert plain_config(f"optimizer={rule}")["optimizer"] == preset
    for other in ("model=bncvl", "model.weights=float"):
        assert plain_config(other, f"optimizer={rule}")["optimizer"]["lr"] < preset["lr"]


def test_a_bad_value_that_a_default_follows_is_named(bnn_train):
    for key, value in (("optimizer.bits", "x"), ("optimizer.bits", "9"), ("optimizer.mask", "best"), ("dataset.name", "foo")):
        done = bnn_train(f"{key}={value}")
        assert done.code == 2 and done.err.startswith(f"bnn-train: {key}={value} is not allowed"), done.err


def test_a_mask_chooses_the_rule_that_has_masks(bnn_train):
    def rule(*arguments):
        return bnn_train(*arguments, "--cfg", "job", "--resolve").out.partition("optimizer:\n  name: ")[2].splitlines()[0]

    assert rule() == "counter" and rule("optimizer.mask=random") == "hypermask"
    assert bnn_train("optimizer=bop", "optimizer.mask=random").code == 2


def test_epochs_and_batch_follow_the_dataset():
    def of(*overrides):
        trainer = settings_of(*overrides).trainer
        return trainer.epochs, trainer.batch_size

    for model in ("mlp", "bncvl"):
        large, small = of(f"model={model}", "dataset=mnist"), of(f"model={model}", "dataset=local", "dataset.path=x")
        assert small[0] > large[0] and small[1] < large[1]
        assert of(f"model={model}", "dataset=mnist", "trainer.epochs=7", "trainer.batch_size=99") == (7, 99)


@pytest.mark.parametrize("delta", rest_slow([0.1, 0.01]))
def test_digits_are_learnt_from_the_first_epochs(delta):
    trainer = trainer_of("model=mlp", f"delta={delta}")
    accuracies = []
    for _ in range(trainer.settings.trainer.epochs):
        trainer.epoch()
        accuracies.append(trainer.evaluate()[0]["test_accuracy"])
    assert max(accuracies[:10]) > 80 and accuracies[-1] >= 96


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Writes small colour images of many sizes in three classes. Returns their folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import photos
    finally:
        sys.path.pop(0)
    return photos.write(tmp_path_factory.mktemp("photos"))


def test_the_photos_are_the_same_each_time_and_their_colours_tell_nothing(photos):
    """A classifier by the nearest mean colour must stay at chance: 3σ of the accuracy on 150 images is 12 percentage points."""
    from helpers import own

    arrays = own(photos, size=32)
    assert len(arrays.train_labels) == 450 and len(arrays.test_labels) == 150 and arrays.train_images.shape[1] == 3
    train, test = (torch.tensor(images).double().mean((2, 3)) for images in (arrays.train_images, arrays.test_images))
    labels, truth = torch.tensor(arrays.train_labels), torch.tensor(arrays.test_labels)
    means = torch.stack([train[labels == i].mean(0) for i in range(3)])
    assert (torch.cdist(test, means).argmin(1) == truth).double().mean() < 1 / 3 + 0.12


@pytest.mark.slow
@pytest.mark.parametrize(("model", "least"), [("mlp", 75), ("bncvl", 88)])
def test_photos_are_learnt_by_the_defaults(bnn_train, summary, photos, model, least):
    done = bnn_train(f"model={model}", "dataset=local", f"dataset.path={photos}", "dataset.size=32")
    assert summary(done.runs[0])["test_accuracy"] >= least
