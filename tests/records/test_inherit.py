"""config=RUN, init_from=RUN and from=RUN: the settings that a command inherits from a run, and the overrides that replace
them."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import plain_config, write_dataset
from omegaconf import OmegaConf

from bnn_exp.config.settings import REQUEST
from bnn_exp.data import sources

SMALL = ("model.hidden_size=16", "trainer.batch_size=128")
RUN = (*SMALL, "model.encoding=boolean", "optimizer.mask=random", "delta=0.3", "real_optimizer=sgd", "dataset.limit=300",
       "trainer.epochs=2", "seed=4")  # fmt: skip
PHOTOGRAPHS = "photographs of 'mine', 100% = ${all}"  # a name full of signs of Hydra's grammar


@pytest.fixture
def first(copy_of_run, tmp_path):
    return copy_of_run(tmp_path / "first", *RUN)


def kept_of(values):
    """Returns the plain values that config.yaml keeps of a configuration."""
    return {key: value for key, value in values.items() if key not in REQUEST}


def composed(bnn_train, *arguments):
    done = bnn_train(*arguments, "--cfg", "job", "--resolve")
    assert done.code == 0, done.err
    return OmegaConf.to_container(OmegaConf.create(done.out))


@pytest.mark.parametrize("place", ["first", "first/config.yaml", "first/model.safetensors", "first/checkpoints/best.pt"])
def test_a_configuration_anew_is_the_same_run(bnn_train, first, summary, place):
    done = bnn_train(f"config={place}", "hydra.run.dir=again")
    assert done.code == 0, done.err
    assert summary("again")["bits_sha256"] == summary(first)["bits_sha256"]
    assert OmegaConf.load("again/config.yaml") == OmegaConf.load(first / "config.yaml")
    assert "config" not in OmegaConf.load("again/config.yaml")


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("init_from: first", ["experiment=mine"]),
        ("init_from: first", ["-m", "experiment=mine", "seed=0,1"]),
        ("hydra: {mode: MULTIRUN, sweeper: {params: {init_from: 'first,first'}}}", ["experiment=mine"]),
        ("init_from: first", ["task=benchmark", "benchmark=training", "experiment=mine"]),
    ],
)
def test_an_experiment_can_not_name_the_run_to_begin_with(bnn_train, first, tmp_path, text, arguments):
    """The experiment is refused: it would keep the strength of the first training, which is too large for fine-tuning."""
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    done = bnn_train("--config-dir", "own", *arguments, "trainer.epochs=1")
    assert done.code == 2 and "init_from=first" in done.err and "only the command line" in done.err, done.err
    assert len(done.err.splitlines()) == 2 and not (tmp_path / "outputs").exists()


def test_an_experiment_in_a_sweep_over_experiments_can_not_name_it(bnn_train, first, tmp_path, summary):
    (tmp_path / "own/experiment").mkdir(parents=True)
    for name, text in (("mine", "init_from: first"), ("plain", "seed: 1")):
        (tmp_path / f"own/experiment/{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    sweep = ("-m", "experiment=mine,plain", *SMALL, "trainer.epochs=1", "hydra.sweep.dir=s")
    assert bnn_train("--config-dir", "own", *sweep).code == 1
    assert summary("s/0")["status"] == "failed" and "only the command line" in summary("s/0")["error"]
    assert summary("s/1")["status"] == "completed"


def test_a_fine_tuned_run_anew_begins_with_the_same_run(bnn_train, first, tmp_path, summary):
    assert bnn_train("init_from=first", "trainer.epochs=1", "hydra.run.dir=tuned").code == 0
    done = bnn_train("config=tuned", "hydra.run.dir=again")
    assert done.code == 0 and summary("again")["bits_sha256"] == summary("tuned")["bits_sha256"], done.err


def test_what_is_said_beside_it_wins(bnn_train, first):
    anew = composed(bnn_train, "config=first", "delta=0.05", "model.hidden_size=24", "seed=1")
    assert (anew["optimizer"]["delta"], anew["optimizer"]["mask"], anew["seed"]) == (0.05, "random", 1)
    assert (anew["model"]["hidden_size"], anew["model"]["encoding"]) == (24, "boolean")
    assert (anew["trainer"]["epochs"], anew["dataset"]["limit"], anew["real_optimizer"]["name"]) == (2, 300, "sgd")
    anew = composed(bnn_train, "config=first", "optimizer=counter", "dataset=mnist")
    plain = composed(bnn_train, "optimizer=counter", "dataset=mnist")
    assert anew["optimizer"] == plain["optimizer"] and anew["dataset"] == plain["dataset"]
    assert anew["model"]["encoding"] == "boolean"
    assert composed(bnn_train, "config=first", "optimizer=latent_adam")["model"]["weights"] == "latent"
    assert composed(bnn_train, "config=first", "model=vgg")["trainer"]["epochs"] == 2
    best, alone = composed(bnn_train, "config=first", "experiment=mnist_best"), composed(bnn_train, "experiment=mnist_best")
    assert best["optimizer"] == alone["optimizer"] and best["dataset"] == alone["dataset"] and best["seed"] == 4


def test_nothing_of_it_is_left_for_the_next_command(bnn_train, first):
    before = composed(bnn_train)
    assert composed(bnn_train, "config=first") != before
    assert composed(bnn_train) == before and "saved" not in bnn_train("--help").out


def test_it_can_be_swept_over(bnn_train, first, summary):
    done = bnn_train("-m", "config=first", "seed=4,5", "hydra.sweep.dir=s")
    assert done.code == 0, done.err
    same, other = (summary(f"s/{job}")["bits_sha256"] for job in (0, 1))
    assert same == summary(first)["bits_sha256"] != other


def test_every_value_comes_back_as_it_was(bnn_train, tmp_path):
    values = plain_config("dataset=mnist", "model=bncvl", "optimizer=latent_sgd", "logger=wandb", "init_from=x")
    kept = kept_of(values)
    kept["dataset"]["path"] = PHOTOGRAPHS
    kept["model"]["channels"], kept["engine"]["threads"], kept["logger"]["project"] = [3, 5], 2, "null"
    (tmp_path / "run").mkdir()
    OmegaConf.save(OmegaConf.create(kept | {"dataset": kept["dataset"] | {"path": "x"}}), tmp_path / "run/config.yaml")
    text = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(text.replace("path: x", f'path: "{PHOTOGRAPHS}"'))
    anew = composed(bnn_train, "config=run")
    assert {key: anew[key] for key in kept} == kept


def test_a_configuration_of_an_earlier_version_keeps_each_rules_strength(bnn_train, first):
    """In earlier versions delta was 0.1 for every rule, and counters had a separate strength."""
    values = OmegaConf.load(first / "config.yaml")
    values.delta, values.optimizer = 0.1, {"name": "counter", "bits": 4, "delta": 0.05, "scale": "tensor", "schedule": "linear"}
    OmegaConf.save(values, first / "config.yaml")
    assert composed(bnn_train, "config=first")["optimizer"] == OmegaConf.to_container(values.optimizer)
    assert composed(bnn_train, "config=first", "delta=0.2")["optimizer"]["delta"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["config=nowhere"], ["config=nowhere", "directory of a run"]),
        (["config=empty"], ["config=empty", "no config.yaml"]),
        (["config=first/samples.png"], ["samples.png", "not the configuration"]),
        (["config=first/damaged.yaml"], ["damaged.yaml", "not the configuration"]),
        (["config=first/damaged.safetensors"], ["damaged.safetensors", "not the configuration"]),
        (["config=first/foreign.yaml"], ["foreign.yaml", "trainer.epochs=0"]),
        (["-m", "config=first,nowhere", "seed=0,1"], ["config=first,nowhere", "one run"]),
        (["init_from=nowhere"], ["init_from=nowhere"]),
        (["from=first"], ["from=first", "config=RUN", "init_from=RUN", "resume=RUN", "task=evaluate from=RUN"]),
        (["-m", "from=first", "seed=0,1"], ["from=first", "config=RUN"]),
        (["--config-dir", "first", "--config-name", "config"], ["config=first/config.yaml"]),
        (["--config-dir", "first"], ["config=first/config.yaml"]),
        (["-cd", "first", "-cn", "config.yaml"], ["config=first/config.yaml"]),
        (["--config-path", "first"], ["config=first"]),
        (["--config-name", "model/vgg"], ["--config-name model/vgg"]),
        (["task=evaluate", "from=empty"], ["from=empty"]),
        (["task=evaluate", "from=first", "config=first"], ["config=first", "task=evaluate"]),
    ],
)
def test_what_can_not_be_taken_over_ends_in_two_lines(bnn_train, first, tmp_path, arguments, texts):
    (tmp_path / "empty").mkdir()
    (first / "damaged.yaml").write_text("model: [")
    text = (first / "config.yaml").read_text()
    (first / "foreign.yaml").write_text(text.replace("epochs: 2", "epochs: 0"))
    (first / "damaged.safetensors").write_bytes((first / "model.safetensors").read_bytes()[:200])
    before = sorted(tmp_path.rglob("*"))
    done = bnn_train(*arguments)
    assert done.code == 2 and all(text in done.err for text in texts), done.err
    assert len(done.err.splitlines()) == 2 and "Traceback" not in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_choices_and_configurations_of_ones_own_stay_possible(bnn_train, first, tmp_path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_text("# @package _global_\nseed: 7\n")
    (tmp_path / "own/whole.yaml").write_text("defaults:\n  - config\n  - _self_\n\nseed: 8\n")
    assert composed(bnn_train, "--config-dir", "own", "experiment=mine", "config=first")["seed"] == 7
    assert composed(bnn_train, "--config-dir", "own", "--config-name", "whole")["seed"] == 8
    for key, text in (("config", "config: first"), ("from", "from: first\ntask: evaluate")):
        (tmp_path / "own/experiment/late.yaml").write_text(f"# @package _global_\n{text}\n")
        late = bnn_train("--config-dir", "own", "experiment=late")
        assert late.code == 2 and f"{key}=first" in late.err and len(late.err.splitlines()) == 2


def test_fine_tuning_goes_on_with_model_and_rule(bnn_train, first, summary):
    done = bnn_train("init_from=first", "trainer.epochs=1", "freeze=1", "hydra.run.dir=second")
    assert done.code == 0, done.err
    config = OmegaConf.load("second/config.yaml")
    assert (config.model, config.real_optimizer) == tuple(
        OmegaConf.load("first/config.yaml")[k] for k in ("model", "real_optimizer")
    )
    assert (config.optimizer.name, config.optimizer.mask) == ("hypermask", "random")
    assert config.optimizer.delta == pytest.approx(0.3 / 5)
    begun = summary("second")["beginning"]
    layers = [f"layers.{i}" for i in range(4)]
    assert (begun["loaded"], begun["anew"], begun["frozen"]) == (layers, [], layers[:1])
    for text in (done.out, Path("second/train.log").read_text()):
        assert "init_from=first: loaded: layers.0, layers.1, layers.2, layers.3; begins anew: nothing; frozen: layers.0" in text
        assert "optimizer.delta=0.06; in the earlier run: optimizer=hypermask optimizer.delta=0.3" in text
    third = composed(bnn_train, "init_from=second")
    assert third["optimizer"]["delta"] == pytest.approx(0.06)  # the first fine-tuning reduced it already


def test_fine_tuning_by_another_rule_or_strength(bnn_train, first):
    other = composed(bnn_train, "init_from=first", "optimizer=latent_adam")
    assert other["optimizer"] == composed(bnn_train, "optimizer=latent_adam")["optimizer"]
    assert (other["model"]["hidden_size"], other["model"]["weights"]) == (16, "latent")
    for said in ("delta=0.2", "optimizer.delta=0.2"):
        assert composed(bnn_train, "init_from=first", said)["optimizer"]["delta"] == 0.2
    assert composed(bnn_train, "init_from=first", "experiment=mnist_best")["optimizer"]["name"] == "counter"
    assert composed(bnn_train, "init_from=first", "config=first")["optimizer"]["delta"] == 0.3  # config= gives the rule too


GENTLER = {
    "hypermask": ("delta", 5), "hypermask_ewm": ("lr", 5), "counter_4bit": ("delta", 5), "bold": ("eta", 5),
    "bop": ("gamma", 10), "bop2": ("gamma", 5), "cema": ("alpha", 5), "latent_adam": ("lr", 1), "latent_sgd": ("lr", 1),
}  # fmt: skip


@pytest.mark.parametrize("rule", GENTLER)
def test_each_rule_has_a_strength_that_suits(rule, bnn_train):
    values, (strength, gentler) = kept_of(plain_config(f"optimizer={rule}")), GENTLER[rule]
    Path("run").mkdir()
    OmegaConf.save(OmegaConf.create(values), "run/config.yaml")
    tuned = composed(bnn_train, "init_from=run")
    assert tuned["optimizer"] == values["optimizer"] | {strength: pytest.approx(values["optimizer"][strength] / gentler)}
    assert tuned["model"] == values["model"]


WHOLE = """
from typing import Annotated, Literal

from pydantic import Field

from bnn_exp import register_rule
from bnn_exp.optim import HyperMask
from bnn_exp.config.schema import Schedule, schema


@schema
class Settings:
    name: Literal["whole"]
    k: Annotated[int, Field(ge=LEAST)]
    schedule: Schedule


register_rule(Settings, HyperMask, values={"k": 12, "schedule": "constant"}, STRENGTH)
"""


@pytest.mark.parametrize(
    ("least", "strength", "k", "expected"),
    [
        (1, "strength='k', gentler=4", 12, 3),
        (1, "strength='k', gentler=4", 2, 1),  # 2/4 is rounded up to a whole number
        (0, "strength='k', gentler=4", 2, 1),  # a strength of 0 would not learn
        (8, "strength='k', gentler=4", 12, 12),  # 12/4 is below the least allowed value
        (1, "gentler=4", 12, 12),  # the rule names no strength
    ],
)
def test_a_strength_that_is_a_whole_number_stays_one(bnn_train, forget, tmp_path, least, strength, k, expected):
    (tmp_path / "whole.py").write_text(WHOLE.replace("LEAST", str(least)).replace("STRENGTH", strength))
    values = composed(bnn_train, "plugins=[whole.py]", "optimizer=whole", f"optimizer.k={k}")
    Path("run").mkdir()
    OmegaConf.save(OmegaConf.create(kept_of(values)), "run/config.yaml")
    found = composed(bnn_train, "init_from=run")["optimizer"]["k"]
    assert (found, type(found)) == (expected, int)


KNOWN, FEW = (
    ("trainer.epochs=60", "model.hidden_size=64", "trainer.batch_size=128"),
    ("trainer.epochs=5", "trainer.batch_size=128"),
)


def test_what_was_known_is_not_destroyed(bnn_train, copy_of_run, tmp_path, summary):
    """Fine-tunes on equal rows, with the inherited rule."""
    run = copy_of_run(tmp_path / "known", *KNOWN)
    assert bnn_train(f"init_from={run}", *FEW, "hydra.run.dir=same").code == 0
    assert summary("same")["test_accuracy"] > summary(run)["test_accuracy"] - 10


@pytest.mark.slow
def test_what_is_other_is_learned(bnn_train, copy_of_run, tmp_path, summary):
    """Fine-tunes on digits that are shifted by a pixel, with the inherited rule."""
    run, digits = copy_of_run(tmp_path / "known", *KNOWN), sources.read("digits")
    train, test = ([*np.roll(images[:, 0], 1, 2)] for images in (digits.train_images[:400], digits.test_images))
    _labelled(tmp_path / "moved", train, digits.train_labels[:400], test, digits.test_labels)
    done = bnn_train(f"init_from={run}", "dataset=local", "dataset.path=moved", *FEW, "hydra.run.dir=tuned")
    assert done.code == 0, done.err
    assert summary("tuned")["test_accuracy"] > 60 and summary("tuned")["beginning"]["anew"] == []


def _labelled(folder, train, train_labels, test, test_labels):
    from PIL import Image

    for split, images, labels in (("train", train, train_labels), ("test", test, test_labels)):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            (folder / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / split / str(label) / f"{i}.png")


def test_a_sweep_may_begin_with_several_runs_of_one_kind(bnn_train, first, copy_of_run, tmp_path, summary):
    copy_of_run(tmp_path / "other", *RUN)
    done = bnn_train("-m", "init_from=first,other", "trainer.epochs=1", "hydra.sweep.dir=s")
    assert done.code == 0 and len({summary(f"s/{i}")["bits_sha256"] for i in range(2)}) == 1, done.err
    text = (tmp_path / "other/config.yaml").read_text()
    (tmp_path / "other/config.yaml").write_text(text.replace("hidden_size: 16", "hidden_size: 32"))
    refused = bnn_train("-m", "init_from=first,other", "trainer.epochs=1", "hydra.sweep.dir=t")
    assert refused.code == 2 and "model.hidden_size is 16 in the first, 32 in other" in refused.err
    assert not (tmp_path / "t").exists()


def test_a_task_has_the_dataset_of_its_run_with_what_is_said_on_top(bnn_train, tmp_path):
    def pictures(count, shade):
        return [np.full((6, 5), shade * (i % 2), np.uint8) for i in range(count)]

    for name, shade in (("a", 255), ("b", 200)):
        write_dataset(tmp_path / name, pictures(40, shade), pictures(10 if name == "a" else 14, shade))
    train = ("dataset=local", "dataset.path=a", "dataset.size=7", *SMALL, "trainer.epochs=2")
    assert bnn_train(*train, "hydra.run.dir=run").code == 0
    for said, rows in (((), 10), (("dataset.path=b",), 14)):
        for place in ("run", "run/model.safetensors", "[run]"):
            done = bnn_train("task=evaluate", f"from={place}", *said)
            assert done.code == 0, done.err
            (file,) = Path("run").glob("evaluations/b-*.json" if said else "evaluation.json")
            assert json.loads(file.read_text())["rows"] == rows
    other = bnn_train("task=evaluate", "from=run", "dataset.size=9")
    assert other.code == 2 and "7×7" in other.err and "9×9" in other.err
