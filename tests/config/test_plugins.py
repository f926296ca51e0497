"""Plugins: every process that reads a run loads the plugins of the run. A plugin that cannot be loaded gives a message."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import code_of, rest_slow
from omegaconf import OmegaConf

SMALL = ("model.hidden_size=8", "trainer=smoke", "trainer.epochs=2", "engine.threads=1", "device=cpu")
PATIENT = (*SMALL, "optimizer=patient", "optimizer.patience=1")
STOPPING = """
import os, signal
from pathlib import Path
import torch.nn.functional as F
from bnn_exp import register_loss

calls = 0


def stopping(logits, labels):
    global calls
    calls += 1
    if calls == 5 and Path("stop").exists():
        Path("stop").unlink()
        os.kill(os.getpid(), signal.SIGINT)
    return F.cross_entropy(logits, labels)


register_loss("stopping", stopping)
"""


@pytest.fixture
def patient(tmp_path):
    """Returns a file with the example rule of docs/add_a_rule.md."""
    (code,) = code_of("add_a_rule.md")
    file = tmp_path / "patient.py"
    file.write_text(code)
    return file


def refused(done, *words, lines=2):
    """Asserts that a command is refused by a message of `lines` lines that contains `words`. Returns the message."""
    assert done.code == 2 and len(done.err.splitlines()) == lines, done.err
    for word in words:
        assert str(word) in done.err, done.err
    return done.err


def test_every_later_command_knows_the_rule_of_a_run(bnn_train, patient, forget, summary, tmp_path):
    done = bnn_train("plugins=[patient.py]", *PATIENT, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert OmegaConf.load("run/config.yaml").plugins == [str(patient)]
    for arguments in (
        ["task=evaluate", "from=run"],
        ["task=predict", "from=run", "input=run/samples.png"],
        ["config=run", "seed=1", "hydra.run.dir=anew"],
        ["init_from=run", "trainer=smoke", "trainer.epochs=1", "hydra.run.dir=tuned"],
        ["resume=run"],
        ["resume=tuned"],
    ):
        forget()
        done = bnn_train(*arguments)
        assert done.code == 0, (arguments, done.err)
    assert "patient" in summary("tuned")["beginning"]["rule"]
    assert [OmegaConf.load(f"{name}/config.yaml").plugins for name in ("anew", "tuned")] == [[str(patient)]] * 2


def test_a_stopped_run_goes_on_to_the_same_bits(bnn_train, patient, forget, summary, tmp_path):
    (tmp_path / "stopping.py").write_text(STOPPING)
    command = ("plugins=[patient.py,stopping.py]", *PATIENT, "trainer.loss=stopping", "trainer.limit_batches=3")
    assert bnn_train(*command, "hydra.run.dir=whole").code == 0
    forget()
    Path("stop").touch()
    assert bnn_train(*command, "hydra.run.dir=cut").code == 130 and summary("cut")["status"] == "interrupted"
    forget()
    assert bnn_train("resume=cut").code == 0
    assert summary("cut")["bits_sha256"] == summary("whole")["bits_sha256"]
    forget()
    assert bnn_train("resume=auto", "hydra.run.dir=whole", *command[1:]).code == 0  # the command names no plugin


@pytest.mark.slow
def test_a_sweep_and_its_report_name_the_plugin(bnn_train, patient, forget):
    done = bnn_train("-m", "plugins=[patient.py]", *PATIENT, "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    forget()
    again = bnn_train("-m", "sweep.resume=sweep", *PATIENT, "seed=0,1,2")
    assert again.code == 0 and len(again.runs) == 3, again.err
    best = next(line for line in again.out.splitlines() if line.startswith("the best: "))
    assert "plugins=" in best
    assert len((Path("sweep") / "sweep.csv").read_text().splitlines()) == 2  # a header, and one row for all seeds


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plugin", "program"])
def test_ranks_and_jobs_in_other_processes(patient, tmp_path, how, summary):
    """A job of launcher=local trains with two ranks."""
    pytest.importorskip("submitit")
    program, named = {"plugin": (["-m", "bnn_exp"], ["plugins=[patient.py]"]), "program": (["patient.py"], [])}[how]
    command = [sys.executable, *program, "-m", *named, *PATIENT, "launcher=local", "engine.devices=2", "hydra.sweep.dir=sweep"]
    done = subprocess.run([*command, "seed=1"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(tmp_path / "sweep/0")["status"] == "completed"
    assert OmegaConf.load(tmp_path / "sweep/0/config.yaml").plugins == [str(patient)]


@pytest.mark.slow
def test_a_program_that_registers_is_a_plugin_of_its_runs(patient, bnn_train, forget, tmp_path, summary):
    text = patient.read_text().replace('if __name__ == "__main__":\n    sys.exit(main())', "sys.exit(main())")
    (tmp_path / "unguarded.py").write_text(text)
    command = [sys.executable, "unguarded.py", *PATIENT, "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert summary("run")["plugins"][0]["plugin"] == str(tmp_path / "unguarded.py")
    assert bnn_train("resume=run").code == 0


def test_a_plugin_that_moved_or_changed(bnn_train, patient, forget, summary, tmp_path):
    assert bnn_train("plugins=[patient.py]", *PATIENT, "hydra.run.dir=run").code == 0
    assert (tmp_path / "run/plugins/patient.py").read_bytes() == patient.read_bytes()
    (fact,) = summary("run")["plugins"]
    digest = subprocess.run(["sha256sum", patient], capture_output=True, text=True, check=True).stdout.split()[0]
    assert fact == {"plugin": str(patient), "file": str(patient), "sha256": digest}
    moved = tmp_path / "elsewhere/patient.py"
    moved.parent.mkdir()
    patient.rename(moved)
    before = sorted(tmp_path.rglob("*"))
    for key in ("resume", "config", "init_from", "task=evaluate from", "task=export from"):
        forget()
        told = refused(bnn_train(*f"{key}=run".split()), patient, f"{key.split()[-1]}=run names it", "run/plugins/patient.py")
        assert "allowed: plugins=[FILE]" in told
    assert sorted(tmp_path.rglob("*")) == before
    assert bnn_train("task=report", "from=run", "hydra.run.dir=report").code == 0  # a report needs no plugin
    forget()
    done = bnn_train("task=evaluate", "from=run", f"plugins=[{moved}]")
    assert done.code == 0 and "warning" not in done.out, done.err
    moved.write_text(moved.read_text() + "# another comment\n")
    forget()
    done = bnn_train("task=evaluate", "from=run", f"plugins=[{moved}]")
    assert done.code == 0 and "warning: the plugin" in done.out and "run/plugins/patient.py" in "".join(done.out.split("\n"))
    forget()
    (tmp_path / "run/summary.json").unlink()  # a killed run has no summary.json
    done = bnn_train("resume=run", f"plugins=[{moved}]")
    assert done.code == 0, done.err
    assert any("has changed" in text for text in summary("run")["warnings"])
    assert OmegaConf.load("run/config.yaml").plugins == [str(moved)]


def test_other_plugins_in_the_place_of_those_of_a_run(bnn_train, patient, forget, tmp_path):
    assert bnn_train("plugins=[patient.py]", *PATIENT, "trainer.epochs=1", "hydra.run.dir=run").code == 0
    (tmp_path / "stopping.py").write_text(STOPPING)
    for key in ("resume", "config", "init_from"):
        forget()
        refused(bnn_train(f"{key}=run", "plugins=[stopping.py]"), "optimizer.name=patient", patient)
    assert bnn_train("init_from=run", "plugins=[patient.py,stopping.py]", *SMALL, "hydra.run.dir=new").code == 0


BAD = {
    "nowhere.py": (None, ["No such file"]),
    "raises.py": ("import sys\n\nraise RuntimeError('no GPU\\nhere')\n", ["RuntimeError: no GPU here (line 3)"]),
    "syntax.py": ("x = (1\n\ny = = 2\n", ["SyntaxError"]),
    "exits.py": ("import sys\n\n\nsys.exit('stop')\n", ["SystemExit: stop (line 4)"]),
    "imports.py": ("import no_such_module\n", ["ModuleNotFoundError", "no_such_module", "(line 1)"]),
    "random.py": ("", ["random is the name of another module"]),
    "numpy.py": ("", ["numpy is the name of another module"]),
    "bytes.py": ("x = '\0'\n", ["null bytes"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_plugin_that_can_not_be_loaded_is_refused(bnn_train, forget, tmp_path, name):
    code, words = BAD[name]
    if code is not None:
        (tmp_path / name).write_text(code)
    before = sorted(tmp_path.rglob("*"))
    refused(bnn_train(f"plugins=[{name}]"), f"plugins={tmp_path / name}", "allowed: ", *words)
    assert sorted(tmp_path.rglob("*")) == before


FAULTS = {  # right text of patient.py, wrong text in its place, words of the message
    "no update": ("def update(", "def updat(", "NotImplementedError: Patient has no method update(g, w, h, state, draw)"),
    "no **training": (", **training):", "):", "unexpected keyword argument 'schedule'"),
    "no schedule": ("    schedule: Schedule\n", "", "optimizer.schedule"),
    "a name": ("h.patience", "h.patienc", "AttributeError", "patient.py, line "),
    "a float mask": ("return (waited", "return g\n        return (waited", "torch.float32 [4, 5]: must be bool [4, 5], or"),
    "another shape": ("return (waited", "return g[:1] > 0\n        return (waited", "torch.bool [1, 5]: must be bool [4, 5]"),
    "columns of rows": ("return (waited", "return g.topk(2, 1).indices\n        return (waited", "returned torch.int64 [4, 2]"),
    "outside": ("return (waited", "return torch.tensor([20])\n        return (waited", "from 20 to 20: must be from 0 to 19"),
    "twice": ("return (waited", "return torch.tensor([3, 3])\n        return (waited", "a position twice"),
    "unscheduled": ('"delta": delta}', '"deltas": delta}', "Patient.scheduled names delta: must be of patience, deltas"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rule_that_can_not_train_is_refused_before_anything_is_written(bnn_train, forget, patient, tmp_path, fault):
    right, wrong, *words = FAULTS[fault]
    code = patient.read_text()
    assert right in code
    code = code.replace(right, wrong)
    patient.write_text(code)
    before = sorted(tmp_path.rglob("*"))
    told = bnn_train("plugins=[patient.py]", *PATIENT)
    refused(told, *words)
    assert [file for file in sorted(tmp_path.rglob("*")) if "__pycache__" not in file.parts] == before


@pytest.mark.parametrize("value", ["['']", ".x", "a..b", "[3]", "null", "no.such.module"])
def test_no_plugin_at_all(bnn_train, tmp_path, value):
    told = bnn_train(f"plugins={value}")
    refused(told, "plugins=", "allowed: a ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["bop", "hypermask_top", "saved", "a-b"])
def test_a_name_that_exists_is_refused(bnn_train, forget, patient, taken):
    patient.write_text(patient.read_text().replace('["patient"]', f'["{taken}"]'))
    refused(bnn_train("plugins=[patient.py]"), f"optimizer={taken}: ", "allowed: another name")


def test_two_plugins_of_one_name(bnn_train, forget, patient, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(patient.read_text())
    refused(bnn_train("plugins=[patient.py,other.py]"), "patient:Patient has this name already", "other:Patient")
    forget()
    folder = tmp_path / "second"
    folder.mkdir()
    (folder / "patient.py").write_text(patient.read_text() + "\n")
    refused(bnn_train("plugins=[patient.py,second/patient.py]"), "patient is the name of another module", patient)
    forget()
    (folder / "patient.py").write_text(patient.read_text())  # a copy is no second plugin
    assert bnn_train("plugins=[patient.py,second/patient.py]", *PATIENT, "trainer.epochs=1").code == 0


def test_modules_and_files_beside_a_plugin(bnn_train, forget, patient, tmp_path):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rule.py").write_text(patient.read_text())
    done = bnn_train("plugins=my_package.rule", *PATIENT, "hydra.run.dir=run")
    assert done.code == 0 and OmegaConf.load("run/config.yaml").plugins == ["my_package.rule"], done.err
    forget()
    assert bnn_train("task=evaluate", "from=run").code == 0
    forget()
    package.rename(tmp_path / "gone")
    refused(bnn_train("task=evaluate", "from=run"), "plugins=my_package.rule", "from=run names", "PYTHONPATH")
    forget()
    (tmp_path / "beside.py").write_text(patient.read_text())
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/it's=one.py").write_text("import helping_rule\n")
    (tmp_path / "a b/helping_rule.py").write_text(patient.read_text())
    assert bnn_train(r"plugins=['a b/it\'s=one.py']", *PATIENT, "hydra.run.dir=odd").code == 0
    forget()
    assert bnn_train("resume=odd").code == 0


def test_an_experiment_names_plugins(bnn_train, forget, patient, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    text = "# @package _global_\nplugins: [patient.py]\ndefaults:\n  - override /optimizer: patient\n"
    (tmp_path / "mine/experiment/waiting.yaml").write_text(text)
    done = bnn_train("--config-dir=mine", "experiment=waiting", *SMALL, "hydra.run.dir=run")
    assert done.code == 0 and OmegaConf.load("run/config.yaml").optimizer.name == "patient", done.err


@pytest.mark.parametrize("flags", rest_slow([("--config-dir=mine",), ("hydra.searchpath=[file://mine]",)]))
def test_an_experiment_names_a_plugin_beside_its_file(bnn_train, forget, patient, tmp_path, flags):
    (tmp_path / "mine/experiment/rules").mkdir(parents=True)
    plugin = patient.rename(tmp_path / "mine/experiment/rules/patient.py")
    text = "# @package _global_\nplugins: [rules/patient.py]\ndefaults:\n  - override /optimizer: patient\n"
    (tmp_path / "mine/experiment/waiting.yaml").write_text(text)
    named = (*flags, "experiment=waiting", *SMALL)
    assert bnn_train(*named, "hydra.run.dir=run").code == 0
    assert OmegaConf.load("run/config.yaml").plugins == [str(plugin)]
    forget()
    assert bnn_train("-m", *named, "seed=0,1", "hydra.sweep.dir=s").code == 0
    assert OmegaConf.load("s/1/config.yaml").plugins == [str(plugin)]
    forget()
    assert bnn_train(*named, "init_from=run", "hydra.run.dir=tuned").code == 0


@pytest.mark.slow
def test_jobs_in_other_processes_find_a_plugin_beside_the_file_of_an_experiment(bnn_train, forget, patient, tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "mine/experiment").mkdir(parents=True)
    plugin = patient.rename(tmp_path / "mine/experiment/patient.py")
    text = "# @package _global_\nplugins: [patient.py]\ndefaults:\n  - override /optimizer: patient\n"
    (tmp_path / "mine/experiment/waiting.yaml").write_text(text)
    sweep = ("--config-dir=mine", "experiment=waiting", *SMALL, "seed=0,1", "launcher=local", "hydra.sweep.dir=s")
    assert bnn_train("-m", *sweep).code == 0
    assert OmegaConf.load("s/0/config.yaml").plugins == [str(plugin)]


def test_a_choice_that_no_plugin_has(bnn_train, tmp_path):
    for group in ("optimizer", "model", "dataset"):
        assert "plugins=[FILE.py]" in refused(bnn_train(f"{group}=mine"), f"{group}=mine: no such choice")
    refused(bnn_train("plugins=[]", "trainer.loss=mine"), "trainer.loss=mine", "cross_entropy, squared_hinge")
    assert not list(tmp_path.iterdir())


def test_help_lists_what_installed_packages_register(patient, tmp_path):
    """An installed package names its plugin by an entry point. A plugin that names its class by text does not import torch."""
    (tmp_path / "waiting.py").write_text(
        "from typing import Literal\nfrom bnn_exp import register_rule\n"
        "from bnn_exp.config.schema import Fraction, Schedule, schema\n\n\n"
        "@schema\nclass Settings:\n    name: Literal['waiting']\n    delta: Fraction\n    schedule: Schedule\n\n\n"
        "register_rule(Settings, 'patient:Patient', values={'delta': 0.1, 'schedule': 'linear'})\n"
    )
    about = tmp_path / "waiting-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: waiting\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[bnn_exp.plugins]\nwaiting = waiting\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code = "import sys; from bnn_exp.cli import main; sys.argv = ['x', '--help']\ntry: main()\n"
    code += "finally: print('torch' in sys.modules)"
    ask = {"env": os.environ | {"PYTHONPATH": path}, "capture_output": True, "text": True, "timeout": 60, "cwd": tmp_path}
    done = subprocess.run([sys.executable, "-c", code], **ask)
    assert "waiting" in done.stdout and done.stdout.endswith("False\n"), done.stderr
    (tmp_path / "waiting.py").write_text("1 / 0\n")
    done = subprocess.run([sys.executable, "-m", "bnn_exp", "--help"], **ask)
    assert done.returncode == 2 and "the package waiting 1.0: ZeroDivisionError" in done.stderr, done.stderr


def test_a_network_of_a_plugin_is_loaded_in_another_process(bnn_train, forget, tmp_path):
    (tmp_path / "resmlp.py").write_text(code_of("add_a_model.md")[0])
    small = ("model=resmlp", "model.width=8", "model.blocks=1", "trainer=smoke", "trainer.epochs=1")
    assert bnn_train("plugins=[resmlp.py]", *small, "hydra.run.dir=run").code == 0
    code = "import bnn_exp, json; [print(type(f('run')[0]).__module__) for f in (bnn_exp.load_model, bnn_exp.load_packed)]"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["resmlp", "resmlp"], done.stderr


@pytest.mark.slow
def test_the_pages_in_a_sweep_that_is_killed_and_resumed(tmp_path, summary):
    """The plugins of both pages train in one sweep under launcher=local, which is killed, resumed, evaluated and exported."""
    pytest.importorskip("submitit")
    (tmp_path / "patient.py").write_text(code_of("add_a_rule.md")[0])
    (tmp_path / "resmlp.py").write_text(code_of("add_a_model.md")[0])
    (tmp_path / "rings.py").write_text(code_of("add_a_model.md")[2])
    settings = ["model=resmlp", "optimizer=patient,hypermask_factored", "dataset=rings", "trainer.loss=smooth", "seed=0,1"]
    command = [sys.executable, "-m", "bnn_exp", "-m", "plugins=[patient.py,resmlp.py,rings.py]", *settings, "launcher=local",
               "trainer.epochs=150", "model.width=64", "sweep.resume=auto", "hydra.sweep.dir=sweep"]  # fmt: skip
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True)
        until = time.monotonic() + 120
        while not list(tmp_path.glob("sweep/*/checkpoints/best.pt")) and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    _kill_jobs(tmp_path)
    assert not all((tmp_path / f"sweep/{i}/summary.json").exists() for i in range(4))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [summary(tmp_path / f"sweep/{i}")["status"] for i in range(4)] == ["completed"] * 4
    assert min(summary(tmp_path / f"sweep/{i}")["test_accuracy"] for i in range(4)) > 90
    for task in (["task=evaluate"], ["task=export", "export.format=torch"]):
        done = subprocess.run([*command[:3], *task, "from=sweep/0"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    program = torch.export.load(tmp_path / "sweep/0/export/network.pt2").module()
    assert program(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape == (3, 3)
    assert json.loads((tmp_path / "sweep/0/evaluation.json").read_text())["different_predictions"] == 0


def _kill_jobs(folder: Path) -> None:
    """Kills the jobs of the sweep in `folder`. submitit starts each job in a new session, so the sweep's signal misses them."""
    for status in Path("/proc").glob("[0-9]*"):
        try:
            inside = (status / "cwd").resolve().is_relative_to(folder)
        except OSError:
            continue
        if inside and int(status.name) != os.getpid():
            os.kill(int(status.name), signal.SIGKILL)


def test_a_plugin_of_an_earlier_version_is_loaded_by_the_modules_that_it_names(bnn_train, forget, tmp_path, summary):
    (new,) = code_of("add_a_rule.md")
    names = "from bnn_exp import Count, Fraction, Rule, Schedule, register_rule, remembered, schema, signs, uniform"
    assert names in new
    old = "from bnn_exp.schema import Count, Fraction, Schedule, schema"
    (tmp_path / "old_rule.py").write_text(
        new.replace(names, f"from bnn_exp import Rule, register_rule, remembered, signs, uniform\n{old}")
    )
    done = bnn_train("plugins=[old_rule.py]", *PATIENT, "hydra.run.dir=run")
    assert done.code == 0 and summary("run")["status"] == "completed", done.err
    from bnn_exp import schema

    assert callable(schema)  # the decorator: the old name of the module does not hide it
