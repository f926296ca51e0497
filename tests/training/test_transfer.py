"""Tests fine-tuning from a run: layers that are loaded, that begin anew, and that are frozen."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from helpers import random_images, settings_of, write_dataset

from bnn_exp import load_model, models
from bnn_exp.data.sources import read
from bnn_exp.nn import named_bits
from bnn_exp.training import finetune

SMALL = ("model.hidden_size=16", "trainer.batch_size=128")


def bits(run) -> list[torch.Tensor]:
    return [b for _, b in named_bits(load_model(run)[0])]


@pytest.fixture
def first(copy_of_run, tmp_path):
    return copy_of_run(tmp_path / "first", *SMALL, "trainer.epochs=20")


def test_all_layers_frozen_but_the_last_keep_bits_and_statistics(bnn_train, first):
    done = bnn_train(*SMALL, "trainer.epochs=2", f"init_from={first}", "freeze=3", "delta=0.3", "hydra.run.dir=second")
    assert done.code == 0, done.err
    old, new = (torch.load(Path(run) / "checkpoints/last.pt", weights_only=True)["network"] for run in (first, "second"))
    for name, tensor in old.items():
        same = torch.equal(tensor, new[name])
        assert same != name.startswith(("layers.3", "norms.3")), name
    metrics = json.loads(Path("second/metrics.jsonl").read_text().splitlines()[0])
    assert [flips > 0 for flips in metrics["flips"].values()] == [False, False, False, True]


@pytest.mark.parametrize("optimizer", ["hypermask", "counter", "latent_adam"])
def test_it_begins_where_the_other_ended(bnn_train, first, optimizer):
    strength = "lr=1e-30" if optimizer == "latent_adam" else "delta=0"
    nothing = (f"optimizer.{strength}", "real_optimizer.lr=1e-30")
    done = bnn_train(
        *SMALL, f"optimizer={optimizer}", *nothing, "freeze=3", "trainer.epochs=1", f"init_from={first}", "hydra.run.dir=second"
    )
    assert done.code == 0, done.err
    assert all(torch.equal(a, b) for a, b in zip(bits(first), bits("second"), strict=True))


def test_other_classes_get_a_fresh_last_layer(bnn_train, first, tmp_path):
    folder = write_dataset(tmp_path / "data", random_images(40, 8, 8), random_images(10, 8, 8))
    arguments = (*SMALL, "dataset=local", f"dataset.path={folder}", "trainer.epochs=1", "delta=0", f"init_from={first}")
    done = bnn_train(*arguments, "hydra.run.dir=second")
    assert done.code == 0, done.err
    old, new = bits(first), bits("second")
    assert [torch.equal(a, b) for a, b in zip(old[:3], new[:3], strict=True)] == [True] * 3
    assert new[3].shape == (2, 16)
    refused = bnn_train(*arguments, "fresh=0", "hydra.run.dir=third")
    assert refused.code == 2 and "layer 4 does not fit" in refused.err and "fresh=1" in refused.err
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["model.hidden_size=8"], "layer 1 does not fit"),
        (["model.hidden_size=8"], "(without any model=…), on images of its size and channels\n"),  # fresh=4 is no way out
        (["model.num_layers=3"], "allowed: a run whose network has 3 layers"),
        (["freeze=4"], "allowed: 0 to 3"),
        (["fresh=5"], "allowed: 0 to 4"),
        (["model.weights=float", "optimizer=latent_adam"], "model.weights=bits there, float here"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(bnn_train, first, tmp_path, arguments, text):
    done = bnn_train(*SMALL, f"init_from={first}", *arguments, "hydra.run.dir=second")
    assert done.code == 2 and text in done.err and "Traceback" not in done.err
    assert not (tmp_path / "second").exists()


def test_the_next_command_after_fine_tuning_evaluates_it(bnn_train, first):
    tuned = bnn_train(f"init_from={first}", "trainer.epochs=1", "hydra.run.dir=second run")
    (line,) = (line for line in tuned.out.splitlines() if line.startswith("next: "))
    done = bnn_train(*shlex.split(line)[2:])
    assert done.code == 0 and "second run: evaluation.json" in done.err, done.err


def test_no_such_model(bnn_train, tmp_path):
    done = bnn_train("init_from=nowhere", "hydra.run.dir=second")
    assert done.code == 2 and "nowhere" in done.err and not (tmp_path / "second").exists()


CHECKPOINTS = {"first/checkpoints/best.pt": "best", "first/checkpoints/last.pt": "last", "away.pt": "best"}


@pytest.mark.parametrize("place", CHECKPOINTS)
def test_a_checkpoint_is_fine_tuned_as_its_run_is(bnn_train, copy_of_run, tmp_path, summary, place):
    """A training without any change keeps the bits of the checkpoint. The best epoch of this run is not its last."""
    rule = ("optimizer=hypermask", "optimizer.scale=tensor", "optimizer.schedule=constant", "delta=0.3")
    first = copy_of_run(tmp_path / "first", *SMALL, *rule, "trainer.epochs=5")
    assert summary(first)["best_epoch"] < 5, "else this shows nothing"
    shutil.copy(first / "checkpoints/best.pt", tmp_path / "away.pt")
    nothing = ("delta=0", "real_optimizer.lr=1e-30", "freeze=3", "trainer.epochs=1")
    done = bnn_train(f"init_from={place}", *nothing, "hydra.run.dir=second")
    assert done.code == 0, done.err
    of = {which: bits(first / f"checkpoints/{which}.pt") for which in ("best", "last")}
    assert not all(torch.equal(a, b) for a, b in zip(of["best"], of["last"], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(of[CHECKPOINTS[place]], bits("second"), strict=True))
    again = bnn_train(f"init_from={place}", "trainer.epochs=1", "hydra.run.dir=third")
    assert again.code == 0 and "optimizer.delta=0.06; in the earlier run: optimizer=hypermask optimizer.delta=0.3" in again.out


@pytest.mark.parametrize(
    ("argument", "texts"),
    [
        ("init_from=first/model.safetensors", ["no statistics", "checkpoints/"]),
        ("init_from=first/checkpoints/none.pt", ["no such file or folder"]),
        ("init_from=first/summary.json", ["init_from=first/summary.json"]),
        ("init_from=damaged.pt", ["damaged.pt"]),
        ("resume=first/checkpoints/last.pt", ["a file", "allowed: the directory of the run, first"]),
        ("resume=first/model.safetensors", ["a file", "allowed: the directory of the run, first"]),
    ],
)
def test_a_file_that_can_not_be_begun_with_is_refused_in_words(bnn_train, first, tmp_path, argument, texts):
    (tmp_path / "damaged.pt").write_bytes((first / "checkpoints/last.pt").read_bytes()[:500])
    before = sorted(tmp_path.rglob("*"))
    done = bnn_train(argument)
    assert done.code == 2 and all(text in done.err for text in texts) and len(done.err.splitlines()) <= 3, done.err
    assert "Traceback" not in done.err and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("optimizer", ["hypermask", "latent_adam"])
def test_classes_in_another_order_are_matched_by_name(first, optimizer):
    settings = settings_of(*SMALL, f"init_from={first}", f"optimizer={optimizer}")
    source, about = load_model(first)
    other = tuple(reversed(about["classes"]))
    network = models.build(settings.model, (1, 8, 8), 10).eval()
    beginning = finetune.begin(network, settings, other)
    pixels = torch.from_numpy(read("digits").test_images)
    with torch.no_grad():
        found, expected = network.eval()(pixels), source(pixels)
    assert torch.allclose(found, expected.flip(1), atol=1e-4) and beginning.anew == []
