"""Sweeps: their answer, their resumption, their launchers. Numbers are compared with the files of the runs."""

import csv
import json
import math
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import COMMAND, plain_config

from bnn_exp.records.runs import Record
from bnn_exp.records.sweeps.comparison import compare
from bnn_exp.records.sweeps.varied_settings import varied_keys

SMALL = ("trainer=smoke", "trainer.epochs=1", "trainer.limit_batches=1")


def table(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "sweep.csv").open()))


def accuracies(directory: Path, **wanted) -> list[float]:
    """Returns the test accuracies of the completed runs below `directory` whose summary has the `wanted` values."""
    found = (json.loads(file.read_text()) for file in sorted(directory.rglob("summary.json")))
    return [s["test_accuracy"] for s in found if s["status"] == "completed" and wanted.items() <= s.items()]


def test_a_sweep_ends_in_a_table_with_its_seeds_folded(bnn_train):
    done = bnn_train("-m", "model.hidden_size=16,32", "seed=0,1,2", "trainer=smoke")
    sweep = done.runs[0].parent
    assert done.code == 0 and len(done.runs) == 6
    rows = table(sweep)
    assert [row["model.hidden_size"] for row in rows] == ["16", "32"]
    assert not {"seed", "optimizer.delta", "model.name"} & set(rows[0])  # columns are the keys that vary
    for row, size in zip(rows, (16, 32), strict=True):
        numbers = accuracies(sweep, binary_parameters=64 * size + 2 * size**2 + 10 * size)
        assert len(numbers) == int(row["runs"]) == 3
        assert float(row["test_accuracy_mean"]) == pytest.approx(statistics.fmean(numbers))
        assert float(row["test_accuracy_std"]) == pytest.approx(statistics.stdev(numbers))
    assert [row["best"] for row in rows].index("1") == max(range(2), key=lambda i: float(rows[i]["test_accuracy_mean"]))
    assert "± " in done.out and "| **" in (sweep / "sweep.md").read_text() and (sweep / "sweep.png").stat().st_size > 5000
    (sweep / "sweep.csv").unlink()
    again = bnn_train("task=report", f"from={sweep}")
    assert again.code == 0 and table(sweep) == rows


def test_a_job_that_cannot_be_is_listed_with_its_reason(bnn_train):
    done = bnn_train("-m", "trainer.batch_size=64,-1,1", "model.hidden_size=8", *SMALL)
    assert done.code == 1
    sweep = done.runs[0].parent
    assert len(table(sweep)) == 1
    for text in (done.out, (sweep / "sweep.md").read_text(), (sweep / "1" / "train.log").read_text()):
        assert "trainer.batch_size=-1" in text and "≥ 2" in text


def test_a_sweep_of_a_key_that_is_not_there_leaves_nothing(bnn_train, tmp_path):
    done = bnn_train("-m", "dleta=0.1,0.2")
    assert done.code == 2 and "did you mean delta" in done.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or "sweep" in path.name]


@pytest.mark.slow
def test_a_report_of_several_places_and_its_axes(bnn_train, tmp_path):
    for name, arguments in (("a", ("delta=0.01",)), ("b", ("delta=0.3",)), ("c", ("delta=0.3", "optimizer.mask=random"))):
        assert bnn_train("optimizer=hypermask", *arguments, "model.hidden_size=8", *SMALL, f"hydra.run.dir={name}").code == 0
    done = bnn_train("task=report", "from=[a,b,c,a]", "report.y=train_loss", "hydra.run.dir=all")
    assert done.code == 0, done.err
    rows = table(tmp_path / "all")
    assert {(row["delta"], row["optimizer.mask"]) for row in rows} == {("0.01", "top"), ("0.3", "top"), ("0.3", "random")}
    best = min(rows, key=lambda row: float(row["train_loss_mean"]))
    assert best["best"] == "1"
    for wrong, allowed in (("report.x=truth", "delta"), ("report.y=beauty", "train_loss"), ("report.group=x", "delta")):
        refused = bnn_train("task=report", "from=[a,b]", wrong, "hydra.run.dir=none")
        assert refused.code == 2 and wrong in refused.err and allowed in refused.err
    assert not (tmp_path / "none").exists()


def test_a_report_writes_over_no_run_and_says_what_it_replaces(bnn_train, copy_of_run, tmp_path):
    for name in ("a", "b", "c"):
        copy_of_run(tmp_path / name, "model.hidden_size=8", *SMALL)
    before = {file: file.read_bytes() for file in Path("c").rglob("*") if file.is_file()}
    for sources in ("[a,b]", "a", "[a,c]"):
        refused = bnn_train("task=report", f"from={sources}", "hydra.run.dir=c")
        assert refused.code == 2 and "hydra.run.dir=c: a run is there" in refused.err
        assert {file: file.read_bytes() for file in Path("c").rglob("*") if file.is_file()} == before
    first = bnn_train("task=report", "from=[a,b]", "hydra.run.dir=all")
    second = bnn_train("task=report", "from=[a,b,c]", "hydra.run.dir=all")
    assert first.code == second.code == 0 and "replaced" in second.err and "replaced" not in first.err
    assert [row["runs"] for row in table(Path("all"))] == ["3"]
    alone = bnn_train("task=report", "from=c")  # a report of one run
    assert alone.code == 0 and table(Path("c"))[0]["runs"] == "1", alone.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["task=report"], "from="),
        (["task=report", "from=nowhere"], "from=nowhere"),
        (["-m", "task=report", "seed=0,1"], "can't be swept"),
        (["-m", "sweep.resume=nowhere", "seed=0,1"], "sweep.resume=nowhere"),
        (["sweep.resume=nowhere"], "needs -m"),
        (["task=fly"], "report"),
    ],
)
def test_bad_requests_leave_nothing(bnn_train, tmp_path, arguments, text):
    done = bnn_train(*arguments)
    assert done.code == 2 and text in done.err and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_what_is_missing(tmp_path, bnn_train):
    arguments = ["-m", "model.hidden_size=8,64", "trainer.epochs=12", "trainer.batch_size=64"]
    process = subprocess.Popen([*COMMAND, *arguments, "seed=0,1", "hydra.sweep.dir=s"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len("".join(f.read_text() for f in tmp_path.glob("s/2/metrics.jsonl")).split("\n")) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "s/0/summary.json").exists() and not (tmp_path / "s/2/summary.json").exists()
    before = {file: file.stat().st_mtime_ns for number in "01" for file in (tmp_path / "s" / number).glob("*.*")}
    trained = torch.load(tmp_path / "s/2/checkpoints/last.pt", weights_only=True)["progress"]["epoch"]
    done = bnn_train(*arguments, "seed=0,1,2", "sweep.resume=s")  # a seed more than before
    assert done.code == 0, done.err
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert f"resumed after epoch {trained}" in done.out
    assert [row["runs"] for row in table(tmp_path / "s")] == ["3", "3"]
    assert len(done.runs) == 6
    alone = bnn_train("model.hidden_size=64", "trainer.epochs=12", "trainer.batch_size=64", "hydra.run.dir=alone")
    fingerprints = {json.loads((run / "summary.json").read_text())["bits_sha256"] for run in done.runs}
    assert json.loads((alone.runs[0] / "summary.json").read_text())["bits_sha256"] in fingerprints


def test_a_sweep_of_an_earlier_version_is_known_again(bnn_train):
    """Its configurations set `delta` for rules that do not read this key."""
    arguments = ("-m", "optimizer=counter,bop", "model.hidden_size=8", *SMALL, "hydra.sweep.dir=s")
    assert bnn_train(*arguments).code == 0
    for file in Path("s").rglob("config.yaml"):
        file.write_text(file.read_text().replace("delta: null", "delta: 0.1"))
    before = {file: file.stat().st_mtime_ns for file in Path("s").rglob("checkpoints/last.pt")}
    done = bnn_train(*arguments, "sweep.resume=s")
    assert done.code == 0 and len(done.runs) == 2, done.err
    assert before == {file: file.stat().st_mtime_ns for file in Path("s").rglob("checkpoints/last.pt")}


def test_processes_of_a_local_launcher_give_the_same_table(bnn_train):
    pytest.importorskip("submitit")
    arguments = ["-m", "trainer.batch_size=64,-1", "model.hidden_size=8", "trainer=smoke"]
    here = bnn_train(*arguments, "hydra.sweep.dir=here", "engine.threads=1")
    there = bnn_train(*arguments, "hydra.sweep.dir=there", "launcher=local")
    assert (here.code, there.code) == (1, 1)
    columns = ("trainer.batch_size", "runs", "test_accuracy_mean", "best")
    tables = [[[row.get(column) for column in columns] for row in table(Path(name))] for name in ("here", "there")]
    assert tables[0] == tables[1] and len(tables[0]) == 1
    assert "trainer.batch_size=-1" in Path("there/sweep.md").read_text()


def run(directory="r", overrides=(), accuracy=50.0, status="completed", **config) -> Record:
    facts = {"status": status, "test_accuracy": accuracy, "train_seconds": 2.0, "epochs": 4, "overrides": list(overrides)}
    return Record(Path(directory), config, facts, [])


def test_the_fewest_keys_that_tell_configurations_apart():
    mlp = {"model": {"name": "mlp", "hidden_size": 8}, "optimizer": {"name": "hypermask", "delta": 0.1}}
    cnn = {"model": {"name": "bncvl", "channels": [4]}, "optimizer": {"name": "latent_adam", "lr": 0.1}}
    assert varied_keys([run(**mlp, seed=0), run(**cnn, seed=1)]) == ["model"]
    assert varied_keys([run(**mlp), run(overrides=["optimizer=latent_adam"], **cnn)]) == ["optimizer"]
    wide = {"model": {"name": "mlp", "hidden_size": 16}, "optimizer": mlp["optimizer"]}
    assert varied_keys([run(**mlp), run(**cnn), run(**wide)]) == ["model", "model.hidden_size"]
    assert varied_keys([run(**mlp, seed=0, resume="x"), run(**mlp, seed=1, resume=None)]) == []


def test_a_preset_is_a_configuration_of_its_name():
    one, other = ({"optimizer": {"name": "counter", "bits": bits, "delta": delta}} for bits, delta in ((8, 0.02), (4, 0.05)))
    result = compare([run(overrides=["optimizer=counter"], **one), run(overrides=["optimizer=counter_4bit"], **other)])
    assert [row.settings for row in result.rows] == [{"optimizer": "counter"}, {"optimizer": "counter_4bit"}]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("optimizer=counter_4bit",), ("optimizer=counter", "optimizer.bits=4", "optimizer.delta=0.05")),
        (("optimizer=hypermask_random",), ("optimizer=hypermask", "optimizer.mask=random", "delta=0.01")),
        ((), ("delta=0.02",)),
        (("optimizer=hypermask",), ("optimizer=hypermask", "optimizer.delta=0.1", "optimizer.lr=10")),
        (("optimizer=bop",), ("optimizer=bop", "optimizer.tau=1e-6")),
        (("model=mlp",), ("model=mlp", "model.num_layers=4")),
    ],
)
def test_one_configuration_in_other_words_is_one_row(one, other):
    said = [(*one, "seed=0"), (*other, "seed=1"), (*other, "seed=2")]
    runs = [run(f"{i}", overrides, **plain_config(*overrides)) for i, overrides in enumerate(said)]
    for order in (runs, runs[::-1]):
        result = compare(order)
        assert result.varied == [] and [row.seeds for row in result.rows] == [3]
    different = run("d", ["delta=0.3", "optimizer=counter"], **plain_config("delta=0.3", "optimizer=counter"))
    assert [len(row.runs) for row in compare([*runs, different]).rows] == [3, 1]


def test_the_strength_has_one_column_and_its_own_value():
    said = (("delta=0.3",), ("optimizer.delta=0.2",), ())
    result = compare(run(f"{i}", overrides, **plain_config(*overrides)) for i, overrides in enumerate(said))
    assert [row.settings for row in result.rows] == [{"delta": 0.3}, {"delta": 0.2}, {"delta": 0.02}]
    assert [line.split(",")[0] for line in result.csv().splitlines()] == ["delta", "0.3", "0.2", "0.02"]


def test_the_table_and_its_file_have_one_label_for_a_preset(bnn_train):
    assert bnn_train("optimizer=counter_4bit", "model.hidden_size=8", *SMALL, "hydra.run.dir=a").code == 0
    assert bnn_train("config=a", "seed=1", "hydra.run.dir=b").code == 0
    assert bnn_train("optimizer=bop", "model.hidden_size=8", *SMALL, "hydra.run.dir=c").code == 0
    assert bnn_train("task=report", "from=[b,a,c]", "hydra.run.dir=all").code == 0
    assert [(row["optimizer"], row["runs"]) for row in table(Path("all"))] == [("counter_4bit", "2"), ("bop", "1")]


def test_what_did_not_complete_is_named_by_its_choice():
    done = [run(optimizer={"name": name}) for name in ("bop", "cema")]
    killed = Record(Path("k"), {"optimizer": {"name": "bold"}}, {}, [])
    assert "`k` optimizer=bold: unfinished" in compare([*done, killed]).markdown()


def test_a_study_of_made_up_runs():
    runs = [run(f"{d}{s}", accuracy=a, delta=d, seed=s) for d, s, a in ((0.1, 0, 90.0), (0.1, 1, 94.0), (0.2, 0, 91.0))]
    killed = Record(Path("k"), {"delta": 0.3}, {}, [])
    result = compare([*runs, killed, run("f", ["delta=9"], status="failed")])
    first, second = result.rows
    assert (first.mean, first.std, first.best) == (92.0, pytest.approx(math.sqrt(8)), True)
    assert (second.mean, second.std, second.best) == (91.0, None, False)
    assert first.seconds_per_epoch == 0.5
    assert [r.directory.name for r in result.unfinished] == ["k", "f"]
    assert "`k` delta=0.3: unfinished" in result.markdown() and "`f` delta=9: failed" in result.markdown()


def test_ctrl_c_ends_a_sweep_with_the_table_so_far(tmp_path):
    arguments = ["-m", "model.hidden_size=8,16,64", "trainer.epochs=3000", "hydra.sweep.dir=s"]
    process = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ | {})
    until = time.monotonic() + 120
    while not list(tmp_path.glob("s/0/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in out and (tmp_path / "s/sweep.md").exists() and not (tmp_path / "s/1").exists()
