"""Compares `load_runs`, rows of single runs and the axes of a report with the files of the run directories."""

import csv
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, command

from bnn_exp import load_runs
from bnn_exp.errors import UserError

COLUMNS = ["epoch", "tensor", "metric", "value"]
SMOKE = ("trainer=smoke", "model.hidden_size=8", "trainer.epochs=2")


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """Returns a folder with a sweep of two rules and two seeds, and a single run."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert command(patch, "-m", *SMOKE, "optimizer=hypermask,counter", "seed=0,1", "hydra.sweep.dir=SWEEP") == 0
        assert (
            command(patch, *SMOKE, "optimizer=hypermask", "trainer.diagnostics=true", "delta=0.2", "hydra.run.dir=one/run") == 0
        )
    return place


def lines(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_the_table_is_tidy_and_has_every_number(swept):
    table = load_runs(swept / "SWEEP")
    assert list(table) == ["run", "status", "seed", "optimizer", *COLUMNS]
    assert not table.duplicated(["run", "epoch", "tensor", "metric"]).any() and table.run.nunique() == 4
    assert table.seed.dtype == table.epoch.dtype == "int64" and table.value.dtype == "float64"
    expected = {}
    for run in table.run.unique():
        for line in lines(run):
            for metric, value in line.items():
                numbers = value if isinstance(value, dict) else {None: value}
                expected |= {(run, line["epoch"], tensor, metric): x for tensor, x in numbers.items() if x is not None}
    expected = {key: value for key, value in expected.items() if key[3] != "epoch"}
    found = dict(zip(table[["run", "epoch", "tensor", "metric"]].itertuples(index=False, name=None), table.value, strict=True))
    assert {(run, e, None if pd.isna(t) else t, m): v for (run, e, t, m), v in found.items()} == expected
    assert set(table[table.tensor.isna()].metric) >= {"train_loss", "test_accuracy", "train_seconds"}
    assert set(table.tensor.dropna()) == {f"layers.{i}.weight" for i in range(4)}


def test_settings_are_columns_with_their_types(swept):
    table = load_runs([swept / "SWEEP", swept / "one"])
    assert {"optimizer", "optimizer.delta"} & set(table) and table.run.nunique() == 5
    asked = load_runs([swept / "one", swept / "SWEEP/0"], ["model.hidden_size", "delta", "trainer.diagnostics", "optimizer"])
    assert asked["model.hidden_size"].dtype == "int64" and asked["trainer.diagnostics"].dtype == bool
    assert asked.groupby("run").delta.first().tolist() == [0.1, 0.2] and set(asked.optimizer) == {"hypermask"}
    assert list(load_runs(swept / "one")) == ["run", "status", "seed", *COLUMNS]  # nothing varies


def test_places_are_directories_patterns_and_lists(swept, monkeypatch):
    monkeypatch.chdir(swept)
    names = lambda places: sorted(load_runs(places).run.unique())  # noqa: E731
    assert (
        names("SWEEP")
        == names("SWEEP/*")
        == [f"SWEEP/{i}" for i in range(4)]
        == names(["SWEEP/0", Path("SWEEP"), "SWEEP/[1-3]"])
    )
    assert names("**/run") == ["one/run"] == names("one/run/model.safetensors") == names("one/run/checkpoints/last.pt")
    for nothing in ("nowhere", "no*", ["a", "b"], swept / "SWEEP/0/checkpoints"):
        with pytest.raises(UserError, match="no run there"):
            load_runs(nothing)
    with pytest.raises(UserError, match=r"settings=model\.hidden: no run has it"):
        load_runs("SWEEP", ["model.hidden"])


def test_tensors_have_their_names_of_the_state_dict_in_old_runs_too(swept, tmp_path):
    run = shutil.copytree(swept / "one/run", tmp_path / "run")
    names = [f"layers.{i}.weight" for i in range(4)]
    assert all(list(value) == names for line in lines(run) for value in line.values() if isinstance(value, dict))
    (summary,) = [json.loads((run / "summary.json").read_text())]
    assert [name for layer in summary["layers"] for name in layer["tensors"]] == names
    old = [line | {"dead_outputs": {f"layers.{i}": i for i in range(4)}} for line in lines(run)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    dead = load_runs(run).query("metric == 'dead_outputs' and epoch == 2")
    assert dead.tensor.tolist() == names and dead.value.tolist() == [0, 1, 2, 3]


def test_the_figure_of_the_docs(swept, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(swept)
    (program,) = re.findall(r"```python\n(import matplotlib.*?)```", (ROOT / "docs/reports.md").read_text(), re.DOTALL)
    names = {}
    exec(program, names)
    assert (swept / "accuracy.png").stat().st_size > 5000
    assert names["flips"].shape == (2, 4) and names["curve"].index.tolist() == [1, 2] and names["curve"].notna().all(axis=None)


def test_single_runs_of_a_sweep_are_rows(swept, tmp_path):
    rows = list(csv.DictReader((swept / "SWEEP/sweep_runs.csv").open()))
    assert [(row["run"], row["optimizer"], row["seed"], row["status"]) for row in rows] == [
        ("0", "hypermask", "0", "completed"), ("1", "hypermask", "1", "completed"),
        ("2", "counter", "0", "completed"), ("3", "counter", "1", "completed"),
    ]  # fmt: skip
    for row in rows:
        summary = json.loads((swept / "SWEEP" / row["run"] / "summary.json").read_text())
        assert float(row["test_accuracy"]) == summary["test_accuracy"] and int(row["epochs"]) == 2
    means = {row["optimizer"]: float(row["test_accuracy_mean"]) for row in csv.DictReader((swept / "SWEEP/sweep.csv").open())}
    for rule, mean in means.items():
        found = [float(row["test_accuracy"]) for row in rows if row["optimizer"] == rule]
        assert sum(found) / len(found) == pytest.approx(mean)


def test_a_run_that_failed_is_a_row_too(bnn_train, tmp_path):
    done = bnn_train("-m", *SMOKE, "dataset.limit=64,1000000,10", "dataset.validation=0.1", "hydra.sweep.dir=s")
    rows = list(csv.DictReader((tmp_path / "s/sweep_runs.csv").open()))
    assert done.code == 1 and [row["status"] for row in rows] == ["completed", "completed", "failed"]
    assert "dataset.validation" in rows[2]["error"] and rows[2]["test_accuracy"] == "" and rows[0]["error"] == ""


@pytest.mark.parametrize("key", ["optimizer", "optimizer.name", "optimizer.mask", "optimizer.delta"])
@pytest.mark.parametrize("axis", ["x", "group"])
def test_a_report_over_any_setting_that_varies(swept, bnn_train, tmp_path, key, axis):
    done = bnn_train("task=report", f"from={swept / 'SWEEP'}", f"report.{axis}={key}", "hydra.run.dir=there")
    assert done.code == 0 and (tmp_path / "there/sweep.png").stat().st_size > 5000, done.err


def test_a_setting_that_does_not_vary_is_no_axis(swept, bnn_train):
    done = bnn_train("task=report", f"from={swept / 'SWEEP'}", "report.group=model.hidden_size")
    assert done.code == 2 and "report.group=model.hidden_size: it does not vary" in done.err
