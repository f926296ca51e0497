"""bnn-train as a program: help, completion, versions, source trees, exit codes, and the directories that it makes."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import COMMAND, ROOT, command, forkserver

from bnn_exp import __version__
from bnn_exp.cli import main


def shell(*arguments, **options):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, **options)


def test_help_lists_choices_and_settings_from_any_directory(tmp_path):
    done = shell("--help", cwd=tmp_path)
    assert done.returncode == 0
    for text in (
        "model: ",
        "dataset: cifar10, cifar100, digits, fashion_mnist, food101, local, mnist, svhn",
        "hidden_size: 256",
        "bnn-train -m",
        "resume",
    ):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--cfg", "job", "--resolve"], ["--info"], ["-sc", "install=bash"], ["--version"]]
)
def test_what_does_not_run_imports_no_torch(arguments, tmp_path):
    code = (
        "import sys; from bnn_exp.cli import main; sys.argv = ['bnn-train', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'datasets', 'matplotlib', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr


def test_completion_offers_choices(tmp_path):
    line = "bnn-train dataset="
    environment = os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = shell("-sc", "query=bash", cwd=tmp_path, env=environment)
    names = ("cifar10", "cifar100", "digits", "fashion_mnist", "food101", "local", "mnist", "svhn")
    assert done.stdout.split() == [f"dataset={name}" for name in names]


def test_the_installed_command_is_the_module():
    try:
        installed = importlib.metadata.distribution("bnn-exp")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("a source tree that is not installed")
    (script,) = installed.entry_points.select(group="console_scripts", name="bnn-train")
    assert script.load() is main and installed.version == __version__


def test_version(bnn_train):
    assert bnn_train("--version").out == f"bnn-train {__version__}\n" and __version__[0].isdigit()


@pytest.mark.slow
def test_a_source_tree_that_is_not_installed_runs(tmp_path):
    """Python imports the package from a copy of the tree, and finds no metadata of an installed distribution."""
    for name in ("bnn_exp", "conf"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import importlib.metadata, sys\n"
        "found = importlib.metadata.version\n"
        "def version(name):\n"
        "    if name == 'bnn-exp': raise importlib.metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "importlib.metadata.version = version\n"
        "from bnn_exp.cli import main\n"
        "sys.argv = ['bnn-train', 'trainer=smoke', 'model.hidden_size=8', 'hydra.run.dir=run']\n"
        "sys.exit(main())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "tree"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "completed" and summary["versions"]["bnn-exp"] == __version__


def test_python_m(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bnn_exp", "delta=9"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2 and "delta=9" in done.stderr


def test_a_sweep_gives_a_directory_a_job(bnn_train, summary):
    done = bnn_train("-m", "model.hidden_size=16,32,64", "trainer=smoke")
    assert done.code == 0 and len(done.runs) == 3
    sizes = [summary(run)["binary_parameters"] for run in done.runs]
    assert sizes == [64 * h + 2 * h * h + 10 * h for h in (16, 32, 64)]
    assert len({run.parent for run in done.runs}) == 1 and "-sweep-" in done.runs[0].parent.name


def test_a_bad_job_leaves_its_reason_and_the_others_run(bnn_train, summary):
    done = bnn_train("-m", "trainer.batch_size=64,1", "trainer=smoke", "model.hidden_size=16")
    assert done.code == 1 and "trainer.batch_size=1" in done.err
    good, bad = (summary(run) for run in done.runs)
    assert good["status"] == "completed" and bad["status"] == "failed" and "trainer.batch_size=1" in bad["error"]


def test_a_resume_is_no_sweep(bnn_train, tmp_path):
    done = bnn_train("-m", "resume=/x", "delta=0.1,0.2")
    assert done.code == 2 and "can't be swept" in done.err and list(tmp_path.iterdir()) == []


def test_a_task_beside_training_makes_no_directory_of_a_run(bnn_train, copy_of_run, tmp_path):
    """Hydra makes a directory for each job, also where the results go to the directory of an earlier run."""
    copy_of_run(tmp_path / "run", "trainer=smoke", "model.hidden_size=16")
    for arguments, code in ((["task=evaluate"], 0), (["task=report", "hydra.output_subdir=.hydra"], 0), (["task=predict"], 2)):
        assert bnn_train(*arguments, "from=run").code == code
        assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_runs_started_in_the_same_second_have_directories_of_their_own(tmp_path):
    runs = [forkserver().Process(target=_smoke, args=(tmp_path,)) for _ in range(8)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(200)
    assert [run.exitcode for run in runs] == [0] * 8
    assert len(list(tmp_path.glob("outputs/*/*/summary.json"))) == 8


def _smoke(folder):
    os.chdir(folder)
    with open(os.devnull, "w") as sys.stdout, pytest.MonkeyPatch.context() as patch:  # noqa: PTH123
        sys.exit(command(patch, "trainer=smoke", "trainer.epochs=1", "model.hidden_size=8", "engine.threads=1"))
