"""scripts/gpu.py: parts that are chosen, fail or hang, the tables, and every part at a tiny size on the CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, rest_slow

from bnn_exp.commands.benchmark import inference_speed, training_times, training_ways
from bnn_exp.config.settings import load_settings

sys.path.append(str(ROOT / "scripts"))
import gpu as script
from gpu_parts import checks, training
from gpu_parts.__main__ import PARTS
from gpu_parts.cases import CASES, Case, Machine

PROGRAM = """
import json, pathlib, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
(out / f"{name}.json").write_text(json.dumps([{"way": name, "ms": 1.25, "runs": 3}]))
print("begins", sys.argv[1:], flush=True)
if name == "runs":
    raise ValueError("a mistake")
if name == "kernels":
    time.sleep(100)
"""


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Returns the module of the script. A fake program measures its parts."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "PROGRAM", (sys.executable, str(tmp_path / "program.py")))
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    return script


@pytest.mark.slow
def test_a_part_that_fails_and_one_that_hangs_cost_only_their_own_rows(gpu, monkeypatch, capsys):
    monkeypatch.setitem(gpu.PARTS, "kernels", gpu.Part("The kernels", 2))
    began = time.monotonic()
    assert gpu.main(["--only", "runs", "kernels", "epochs", "--out", "o", "--data", "d"]) == 1
    assert time.monotonic() - began < 60
    found = json.loads(Path("o/gpu.json").read_text())
    parts = found["parts"]
    assert list(parts) == ["runs", "kernels", "epochs"] and found["device"] == "cpu"
    assert parts["runs"]["status"] == "failed with exit code 1" and parts["runs"]["end"][-1] == "ValueError: a mistake"
    assert parts["kernels"]["status"] == "stopped after 2 s" and parts["kernels"]["end"][0].startswith("begins")
    assert parts["epochs"]["status"] == "done" and "end" not in parts["epochs"]
    assert all(part["rows"] == [{"way": name, "ms": 1.25, "runs": 3}] for name, part in parts.items())
    said = Path("o/epochs.log").read_text()
    assert f"'--device', 'cpu', '--out', '{Path('o').resolve()}', '--data', '{Path('d').resolve()}'" in said
    out = capsys.readouterr().out
    assert "runs: failed with exit code 1" in out and Path("o/gpu.md").read_text() in out


def test_a_part_without_a_gpu_or_without_time_says_so(gpu):
    assert gpu.main(["--only", "tests", "--out", "o"]) == 0
    assert gpu.main(["--only", "epochs", "--minutes", "0", "--out", "p"]) == 0
    ends = [json.loads(Path(out, "gpu.json").read_text())["parts"] for out in "op"]
    assert ends[0]["tests"]["status"] == "no GPU: not measured"
    assert ends[1]["epochs"]["status"] == "no time left: not measured" and not Path("p/epochs.log").exists()
    assert "no GPU: not measured." in Path("o/gpu.md").read_text()


def test_the_tables_replace_the_block_of_the_page_and_nothing_else(gpu):
    Path("page.md").write_text(f"# Title\n\n{gpu.BEGIN}\nold\n{gpu.END}\n\nThe end.\n")
    for _ in range(2):
        assert gpu.main(["--only", "epochs", "--write", "--out", "o"]) == 0
    page = Path("page.md").read_text()
    assert page.startswith(f"# Title\n\n{gpu.BEGIN}\n`python scripts/gpu.py --only epochs") and "old" not in page
    assert page.endswith(f"{gpu.END}\n\nThe end.\n") and page.count("| epochs | 1.25 | 3 |") == 1
    assert ROOT.joinpath("docs/gpu.md").read_text().count(gpu.BEGIN) == 1


def test_a_table_has_the_columns_of_all_rows(gpu):
    rows = [{"way": "a|b", "ms": 1234.5}, {"way": "c", "count": 1234, "reached": True}, {"way": "d", "ms": 0.012345}]
    assert gpu.table(rows) == [
        "| way | ms | count | reached |",
        "| --- | ---: | ---: | ---: |",
        "| a\\|b | 1,234 |  |  |",
        "| c |  | 1234 | yes |",
        "| d | 0.0123 |  |  |",
    ]


def test_what_is_missing_is_named_in_one_line(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name in ("hydra", "PIL") else name)
    assert gpu.main(["--out", "o"]) == 2 and not Path("o").exists()
    assert capsys.readouterr().err.startswith("missing: hydra-core, pillow (")


def test_the_script_starts_without_the_package_and_names_its_parts():
    assert list(script.PARTS) == list(PARTS)
    done = subprocess.run([sys.executable, ROOT / "scripts/gpu.py", "--help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and "hydra-core" in done.stdout and ", ".join(PARTS) in " ".join(done.stdout.split())


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Makes every part as small as possible. Returns the machine: the CPU."""
    monkeypatch.setattr(training, "CASES", (training.CASES[0], training.CASES[-1]))
    monkeypatch.setattr(training, "RACES", training.RACES[:1])
    monkeypatch.setattr(training, "NETWORKS", training.NETWORKS[:1])
    monkeypatch.setattr(training, "RULES", ("hypermask_top", "counter"))
    monkeypatch.setattr(inference_speed, "_memory", lambda *given: {})
    return Machine("cpu", None, tmp_path)


SMALL = "machine", "epochs", "counts", "runs", "inference", "cnn", "accuracy", "kernels"  # parts that measure on a CPU too


@pytest.mark.parametrize("name", rest_slow(SMALL, 3))
def test_a_part_measures_on_a_cpu_what_its_table_names(name, small):
    rows = list(PARTS[name](small))
    assert rows == json.loads(json.dumps(rows))
    if name == "machine":
        assert all(row["value"] > 0 for row in rows if row[""].startswith(("copy", "product")))
    if name in ("epochs", "runs"):
        assert [next(iter(row.values())) for row in rows] == [case.name for case in training.CASES]
        assert rows[0].keys() >= {"dense", "packed"} and "packed" not in rows[1]  # a CNN has no packed engine
    if name == "epochs":
        assert rows[0]["auto is"] in ("dense", "packed") and rows[0]["torch fp32"] > 0
    if name == "inference":
        assert {row["batch"] for row in rows} == {1, 4} and all(row["packed"] > 0 for row in rows)
    if name == "cnn":
        assert len(rows) == 3 and all(row["packed"] > 0 and row["torch bf16"] > 0 for row in rows)
    if name == "accuracy":
        assert [row["epochs"] for row in rows] == [1, 1] and all(row["s"] > 0 and 0 < row["test %"] < 98 for row in rows)
    if name == "kernels":
        total, *slowest = [row for row in rows if row["step"] == rows[0]["step"]]
        assert total["kernel"] == "all" and sum(row["µs"] for row in slowest) <= total["µs"] * 1.001
        assert [row["µs"] for row in slowest] == sorted((row["µs"] for row in slowest), reverse=True)
    if name == "counts":
        assert all(isinstance(rows[0][rule], int) and rows[0][rule] > 20 for rule in training.RULES)


def test_a_case_that_fails_costs_no_other_case_and_a_way_that_fails_no_other_way(small, monkeypatch):
    measure = training_times.measure

    def without_packed(names, *given, **more):
        if "packed" in names:
            raise RuntimeError("no\nkernel")
        return measure(names, *given, **more)

    monkeypatch.setattr(training_times, "measure", without_packed)
    cases = (Case("impossible", "", "dataset=digits delta=9"), training.CASES[0])
    monkeypatch.setattr(training, "CASES", cases)
    rows = []
    with pytest.raises(RuntimeError, match="failed: impossible"):
        for row in training.of_epochs(small):
            rows.append(row)
    assert rows[0]["failed"] == "impossible" and rows[0]["error"].startswith("UserError: delta=9")
    assert rows[1]["packed"] == "RuntimeError: no" and rows[1]["dense"] > 0


def test_a_case_trains_what_its_name_says(tmp_path):
    machine = Machine("cuda", "data", tmp_path)
    for case in CASES:
        settings = load_settings(training_ways.held(machine.composed(case), 1))
        dataset, *words = case.name.split()
        rule = getattr(settings.optimizer, "mask", settings.optimizer.name)
        assert f"batch {settings.trainer.batch_size}" in case.name and settings.dataset.path == f"data/{settings.dataset.name}"
        assert settings.dataset.name == dataset.lower().replace("-", "") and settings.device == "cuda"
        assert rule in words or settings.model.name == "bncvl"
        assert f"h={getattr(settings.model, 'hidden_size', '')}" in words or settings.model.name in words


def test_the_steps_of_both_engines_are_read(monkeypatch, tmp_path):
    def command(words, check):
        folder = Path(words[-1].removeprefix("hydra.run.dir="))
        assert words[1:6] == ["-m", "bnn_exp", "task=benchmark", "benchmark=machine", "device=cuda"] and check
        folder.mkdir()
        (folder / "benchmark.json").write_text(
            '{"steps": [{"rule": "whole", "hidden": 8, "batch": 32, "dense": 0.002, "packed": 0.001}]}'
        )

    monkeypatch.setattr(subprocess, "run", command)
    rows = list(training.of_engines(Machine("cuda", None, tmp_path)))
    assert rows == [{"step, ms": "h=8, batch 32, whole", "dense": 2.0, "packed": 1.0}]


def test_the_outcome_of_the_tests_is_read(monkeypatch, tmp_path):
    def pytest_of_the_machine(command):
        assert "gpu" in command and f"--junitxml={tmp_path / 'tests.xml'}" in command
        (tmp_path / "tests.xml").write_text(
            '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2" time="41.6">'
            '<testcase name="test_a"><failure message="assert 1 == 2&#10;more"/></testcase><testcase name="test_b"/>'
            "</testsuite></testsuites>"
        )
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", pytest_of_the_machine)
    assert list(checks.of_tests(Machine("cuda", None, tmp_path))) == [
        {"test": "all", "outcome": "5 passed, 2 failed, 2 skipped, 42 s"},
        {"test": "test_a", "outcome": "assert 1 == 2"},
    ]
