"""Searches with Optuna: their spaces, their resumption, their refusals. Numbers are compared with the files of the runs."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
from helpers import command, rest_slow

from bnn_exp.errors import UserError

SMALL = ("trainer=smoke", "trainer.epochs=1", "trainer.limit_batches=1")
SEARCH = ("-m", "sweeper=optuna", *SMALL)


def table(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "sweep.csv").open()))


def test_a_search_asks_for_trials_and_resumes(bnn_train):
    optuna = pytest.importorskip("optuna")
    space = ["delta=tag(log,interval(0.001,0.3))", "optimizer.mask=top,random", "model.hidden_size=range(8,33)", *SMALL]
    arguments = ["-m", "sweeper=optuna", *space, "hydra.sweep.dir=s"]
    assert bnn_train(*arguments, "sweep.trials=3").code == 0
    done = bnn_train(*arguments, "sweep.trials=5", "sweep.resume=s")
    assert done.code == 0 and len(done.runs) == 5, done.err
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s/optuna.log"))
    trials = optuna.load_study(study_name="search", storage=storage).trials
    reached = [json.loads(file.read_text())["test_accuracy"] for file in Path("s").rglob("summary.json")]
    assert sorted(trial.value for trial in trials) == sorted(reached)
    for trial in trials:
        assert 0.001 <= trial.params["delta"] <= 0.3 and 8 <= trial.params["model.hidden_size"] <= 32
    assert len(table(Path("s"))) == 5


@pytest.mark.parametrize(
    ("sweep", "allowed"),
    [
        ("delta=0.1", "KEY=interval(A,B)"),
        ("delta=range(0.1,0.5,0.1)", "interval(A,B)"),
        ("delta=tag(log,interval(0,0.1))", "0 < A"),
        ("model.hidden_size=tag(log,range(0,9))", "0 < A"),
        ("delta=interval(0.5,0.1)", "A ≤ B"),
        ("delta=interval(0,inf)", "A ≤ B"),
        ("model.hidden_size=range(8,4)", "A < B"),
        ("dleta=interval(0.1,0.5)", "did you mean delta"),
        ("optimizer=bop,cuonter", "counter"),
        ("delta=interval(-1,0.5)", "delta=interval(-1,0.5): some of its numbers are not allowed\nallowed: a number ≥ 0"),
        ("real_optimizer.momentum=interval(0,2)", "not allowed\nallowed: a number ≥ 0 and < 1"),
        ("model.hidden_size=interval(1,16)", "allowed: a whole number ≥ 1: model.hidden_size=int(interval(1,16))"),
        ("model.hidden_size=tag(log,interval(2,16))", "≥ 1: model.hidden_size=int(tag(log,interval(2,16)))"),
        ("model.hidden_size=int(interval(0,16))", "not allowed\nallowed: a whole number ≥ 1"),
        ("trainer.epochs=range(-4,9,4)", "not allowed\nallowed: a whole number ≥ "),
    ],
)
def test_a_search_that_cannot_be_is_refused(bnn_train, tmp_path, sweep, allowed):
    pytest.importorskip("optuna")
    rule = ("real_optimizer=sgd", "optimizer=hypermask")
    done = bnn_train("-m", "sweeper=optuna", "sweep.trials=2", *SMALL, *rule, sweep, "hydra.sweep.dir=s")
    assert done.code == 2 and allowed in done.err and "Traceback" not in done.err
    assert not (tmp_path / "s").exists()


def test_a_search_up_to_an_end_that_is_not_allowed(bnn_train, tmp_path):
    """Trials are never drawn at the ends of an interval, so the end itself may be a refused value."""
    pytest.importorskip("optuna")
    for space in (["real_optimizer.momentum=interval(0,1)"], ["optimizer=hypermask,counter", "optimizer.delta=interval(0,2)"]):
        done = bnn_train("-m", "sweeper=optuna", "sweep.trials=1", *SMALL, "real_optimizer=sgd", *space)
        assert done.code == 0, done.err


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The directory of a finished search: two trials over model.hidden_size=8,16."""
    pytest.importorskip("optuna")
    place = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert command(patch, *SEARCH, "model.hidden_size=8,16", "sweep.trials=2", "hydra.sweep.dir=s") == 0
    return place / "s"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["model.hidden_size=8,16", "optimizer=bop"], "optimizer=bop: the search in s has optimizer=counter"),
        (["model.hidden_size=8,16", "seed=3"], "seed=3: the search in s has seed=0"),
        (["model.num_layers=2,3"], "model.hidden_size: the search in s varies it"),
        (["model.hidden_size=8,16", "model.num_layers=2,3"], "model.num_layers: the search in s does not vary it"),
        (["model.hidden_size=32,64"], "model.hidden_size: trial 0 of the search in s has"),
        (["model.hidden_size=interval(20,30)"], "model.hidden_size: trial 0 of the search in s has"),
    ],
)
def test_a_search_does_not_go_on_with_another_configuration(bnn_train, searched, tmp_path, arguments, text):
    shutil.copytree(searched, tmp_path / "s")
    before = {file: file.read_bytes() for file in Path("s").rglob("*") if file.is_file()}
    refused = bnn_train(*SEARCH, *arguments, "sweep.trials=3", "sweep.resume=s")
    assert refused.code == 2 and text in refused.err and "allowed: " in refused.err and "Traceback" not in refused.err
    assert {file: file.read_bytes() for file in Path("s").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("space", rest_slow(["8,12,16", "16,8", "range(8,17)", "int(tag(log,interval(4,64)))"]))
def test_a_search_goes_on_in_a_wider_space(bnn_train, searched, tmp_path, space):
    import optuna

    shutil.copytree(searched, tmp_path / "s")
    done = bnn_train(*SEARCH, f"model.hidden_size={space}", "device=cpu", "sweep.trials=4", "sweep.resume=s")
    assert done.code == 0, done.err
    journals = (optuna.storages.journal.JournalFileBackend(str(file / "optuna.log")) for file in (searched, Path("s")))
    earlier, now = (
        optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(journal)).trials for journal in journals
    )
    assert len(now) == 4 and [trial.value for trial in now[:2]] == [trial.value for trial in earlier]
    assert [f"{t.params['model.hidden_size']}" for t in now[:2]] == [t.params["model.hidden_size"] for t in earlier]


def test_a_search_that_breaks_off_has_failed(bnn_train, monkeypatch):
    optuna = pytest.importorskip("optuna")

    def broken(*_, **__):
        raise RuntimeError("no more trials")

    monkeypatch.setattr(optuna.Study, "ask", broken)
    done = bnn_train("-m", "sweeper=optuna", "sweep.trials=1", *SMALL, "delta=interval(0.1,0.2)", "hydra.sweep.dir=s")
    assert done.code == 1 and "no more trials" in done.err


@pytest.mark.slow
def test_the_best_of_a_search_is_that_of_the_table(bnn_train):
    """With validation rows the best trial is that of the best validation accuracy. Its printed command repeats the run."""
    optuna = pytest.importorskip("optuna")
    arguments = ["-m", "sweeper=optuna", "model.hidden_size=range(8,40)", "dataset.validation=0.2", *SMALL, "sweep.trials=5"]
    done = bnn_train(*arguments, "hydra.sweep.dir=s")
    assert done.code == 0, done.err
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s/optuna.log"))
    best = optuna.load_study(study_name="search", storage=storage).best_trial
    (row,) = (row for row in table(Path("s")) if row["best"] == "1")
    assert float(row["best_validation_accuracy_mean"]) == best.value
    assert row["model.hidden_size"] == str(best.params["model.hidden_size"])
    (line,) = (line for line in done.out.splitlines() if line.startswith("the best: bnn-train "))
    again = bnn_train(*shlex.split(line)[3:], "hydra.run.dir=again")
    assert again.code == 0 and json.loads(Path("again/summary.json").read_text())["best_validation_accuracy"] == best.value


def test_hydras_sweep_syntax_as_a_space():
    pytest.importorskip("optuna")
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from bnn_exp.commands.search import distribution

    for text, expected in {
        "a=interval(0.1,2)": FloatDistribution(0.1, 2.0),
        "a=tag(log,interval(0.1,2.0))": FloatDistribution(0.1, 2.0, log=True),
        "a=int(interval(1,9))": IntDistribution(1, 9),
        "a=range(2,11,2)": IntDistribution(2, 10, step=2),
        "a=range(2,10,3)": IntDistribution(2, 8, step=3),
        "a=range(9,1,-4)": IntDistribution(5, 9, step=4),
        "a=x,y": CategoricalDistribution(["x", "y"]),
    }.items():
        assert distribution(OverridesParser.create().parse_override(text)) == expected, text
    with pytest.raises(UserError, match="no space"):
        distribution(OverridesParser.create().parse_override("a=range(0.1,1.0,0.1)"))
