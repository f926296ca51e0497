"""Evaluations of a run: each belongs to one network, which the files of the run identify."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from helpers import TINY, contents, rest_slow

from bnn_exp.records import evaluations, html
from bnn_exp.records.html.evaluations import ABSENT, evaluated

MORE = (*TINY, "trainer.epochs=4")
PLACES = (["from=k"], ["from=k/checkpoints/last.pt"], ["from=k", "which=best"])


@pytest.mark.parametrize("place", rest_slow(PLACES), ids=" ".join)
def test_the_page_does_not_show_an_evaluation_of_a_stopped_run_as_the_finished_ones(bnn_train, stopping_at, place):
    stopping_at(2, 1, signal.SIGTERM)
    assert bnn_train(*MORE, "hydra.run.dir=k").code == 130
    assert bnn_train("task=evaluate", *place).code == 0
    (name, value), *_ = evaluations.read(Path("k"))
    assert ABSENT not in Path("k/report.html").read_text()
    assert bool(evaluated(Path("k"))["mistakes"]) == (name == evaluations.OWN)
    assert bnn_train("resume=k").code == 0
    assert Path("k/report.html").read_text().count(ABSENT) == 1
    shown = evaluated(Path("k"))
    assert shown["evaluations"][0][1] == value["model"]["which"] + ABSENT
    assert shown["mistakes"] == [] and shown["wrong"] is None
    assert bnn_train("task=evaluate", *place).code == 0
    rows = evaluated(Path("k"))["evaluations"]
    assert [row[1] for row in rows].count(value["model"]["which"]) == 1


@pytest.mark.parametrize("kept", ["epoch1.pt", "model.safetensors"])
def test_a_copied_run_has_the_evaluations_of_its_networks(bnn_train, copy_of_run, tmp_path, kept):
    run = copy_of_run(tmp_path / "run", *TINY)
    shutil.copy(run / "checkpoints/last.pt", run / "checkpoints/epoch1.pt")
    for place in (["from=run"], ["from=run", "which=best"], ["from=run/checkpoints/epoch1.pt"]):
        assert bnn_train("task=evaluate", *place).code == 0
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    shutil.rmtree(run)
    html.write_run_page(moved)
    assert ABSENT not in (moved / "report.html").read_text()
    assert {row[1] for row in evaluated(moved)["evaluations"]} == {"last", "best", "epoch1.pt"}
    (file,) = moved.rglob(kept)
    file.write_bytes(b"damaged")
    absent = {"epoch1.pt": "epoch1.pt", "model.safetensors": "last"}[kept]
    assert [row[1] for row in evaluated(moved)["evaluations"] if ABSENT in row[1]] == [absent + ABSENT]


def test_an_evaluation_of_an_earlier_version_is_shown_as_it_was(bnn_train, copy_of_run, tmp_path):
    run = copy_of_run(tmp_path / "run", *TINY)
    for place in (["from=run"], ["from=run", "which=best"]):
        assert bnn_train("task=evaluate", *place).code == 0
    for name, value in evaluations.read(run):
        del value["model"]["file_sha256"]
        (run / name).write_text(json.dumps(value))
    assert {row[1] for row in evaluated(run)["evaluations"]} == {"last", "best"}
    value = json.loads((run / evaluations.OWN).read_text())
    del value["model"]
    (run / evaluations.OWN).write_text(json.dumps(value))
    assert evaluated(run)["mistakes"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["task=evaluate", "from=run"],
        ["task=evaluate", "from=run/model.safetensors", "which=last"],
        ["task=predict", "from=run", "input=run/samples.png"],
        ["task=export", "from=run", "export.format=torch"],
        ["task=benchmark", "from=run"],
        ["task=benchmark", "model.hidden_size=8"],
        ["task=benchmark", "benchmark=training"],
    ],
    ids=" ".join,
)
def test_results_do_not_go_to_the_directory_of_another_run(bnn_train, copy_of_run, tmp_path, arguments):
    for name in ("run", "other"):
        copy_of_run(tmp_path / name, *TINY)
    before = contents(tmp_path)
    done = bnn_train(*arguments, "hydra.run.dir=other")
    assert done.code == 2 and done.err.startswith("bnn-train: hydra.run.dir=other: another run is there (completed)"), done.err
    assert len(done.err.splitlines()) == 2 and contents(tmp_path) == before


def test_the_directory_of_the_run_itself_may_be_named(bnn_train, copy_of_run, tmp_path):
    run = copy_of_run(tmp_path / "run", *TINY)
    done = bnn_train("task=evaluate", "from=run", f"hydra.run.dir={run}")
    assert done.code == 0 and (run / evaluations.OWN).is_file() and not (run / "evaluations").exists(), done.err
    assert evaluations.OWN in (run / "report.html").read_text()
