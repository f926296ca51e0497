"""The last line of the output suggests a command that makes sense and can be pasted into a shell."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import following, pictures, settings_of

from bnn_exp.records.next_command import Ended

SMALL = ("trainer.epochs=1", "model.hidden_size=8")


def after(*overrides: str, train: float, test: float, channels: int = 1, **more) -> list[str]:
    ended = Ended(settings_of(*overrides), overrides, Path("run"), train, test, channels, **more)
    return following(ended.next())


def test_a_network_that_has_not_learned_is_not_to_be_swept():
    assert after("optimizer=hypermask", "delta=0.1", "seed=3", train=38.0, test=38.0) == ["seed=3", "optimizer=counter"]
    assert after("seed=3", "trainer.epochs=9", train=38.0, test=38.0) == ["seed=3", "trainer.epochs=18"]
    mlp = after("dataset=cifar10", "model.hidden_size=512", "trainer.epochs=9", train=45.0, test=44.0, channels=3)
    assert mlp == ["dataset=cifar10", "model=bncvl"]
    assert after("model=bncvl", "trainer.epochs=20", train=45.0, test=44.0) == ["model=bncvl", "trainer.epochs=40"]


def test_a_network_of_a_plugin_may_have_no_setting_weights():
    settings = replace(settings_of("optimizer=hypermask"), model=SimpleNamespace(name="own"))
    ended = Ended(settings, ["optimizer=hypermask", "seed=3"], Path("run"), 38.0, 38.0, 1)
    assert following(ended.next()) == ["seed=3", "optimizer=counter"]


def test_a_network_that_knows_its_rows_by_heart_gets_more_pictures():
    assert after("seed=1", train=100.0, test=80.0) == ["seed=1", "dataset.augment=standard"]
    assert after("dataset.augment=standard", train=100.0, test=80.0)[0] == "-m"


def test_a_good_run_is_swept_around():
    found = after("model.hidden_size=100", "delta=0.1", "seed=4", train=99.0, test=97.0)
    assert found == ["-m", "delta=0.1", "model.hidden_size=50,100,200", "seed=0,1,2"]
    assert after("model=bncvl", train=99.0, test=98.0) == ["-m", "model=bncvl", "seed=0,1,2"]


def test_a_smoke_run_is_followed_by_the_whole_one():
    smoke = ("trainer=smoke", "trainer.epochs=1", "trainer.limit_batches=3", "trainer.batch_size=64", "seed=1")
    assert after(*smoke, train=20.0, test=20.0) == ["trainer.batch_size=64", "seed=1"]


def test_a_run_of_a_sweep_and_one_that_went_on():
    ended = Ended(settings_of(), [], Path("a b"), 99.0, 97.0, 1)
    assert replace(ended, in_sweep=True).next() == ""
    assert following(replace(ended, resumed=True).next()) == ["task=evaluate", "from=a b"]


def test_each_command_names_one_that_works(bnn_train, tmp_path):
    """Follows the suggestions from a training to its evaluation, export and benchmark, in a folder whose name needs quotes."""
    assert bnn_train(*SMALL, "hydra.run.dir=my run").code == 0
    pictures(tmp_path / "in", ["a"], n=1, splits=("",))
    evaluated = following(bnn_train("task=predict", "from=my run", "input=in", "hydra.run.dir=p").err)
    assert evaluated == ["task=evaluate", "from=my run"]
    exported = following(bnn_train(*evaluated).err)
    assert exported == ["task=export", "from=my run"]
    measured = following(bnn_train(*exported, "export.format=torch").err)
    assert measured == ["task=benchmark", "from=my run"]
    assert following(bnn_train("task=evaluate", "from=my run", "which=best").err)[-1] == "which=best"


def test_a_sweep_names_its_best_run_once(bnn_train):
    done = bnn_train("-m", *SMALL, "seed=0,1", "hydra.sweep.dir=my sweep")
    evaluated = following(done.out)
    assert evaluated[0] == "task=evaluate" and bnn_train(*evaluated).code == 0


@pytest.mark.parametrize("limit", [100, 5000])
def test_a_limited_test_is_of_so_many_rows_and_says_so(bnn_train, summary, tmp_path, limit):
    done = bnn_train(*SMALL, f"trainer.limit_eval={limit}", "dataset.validation=0.2", "hydra.run.dir=run")
    tested = sum(map(sum, summary(tmp_path / "run")["confusion"]))
    assert tested == min(limit, 360) and ("100 of 360 test rows" in done.out) == ("of 100 of 360 rows" in done.out) == (
        limit == 100
    )
    full = bnn_train("task=evaluate", "from=run")
    assert full.code == 0 and "360 test rows" in full.out  # the accuracies differ, but cover different rows


def test_a_smoke_run_tests_few_rows():
    assert settings_of("trainer=smoke", "model=vgg", "dataset=mnist").trainer.limit_eval == 500
    assert settings_of("model=vgg").trainer.limit_eval is None
