"""Signals and full disks end a run, and leave its directory complete. Failing plots, loggers and output never end a run."""

import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers import COMMAND, TINY, epochs, timeless

from bnn_exp.errors import NotWritten
from bnn_exp.records import checkpoint, files, metrics
from bnn_exp.records.standard_streams import Forgiving, forgiving_output
from bnn_exp.training import signals

ENDLESS = ("model.hidden_size=8", "trainer.epochs=100000", "trainer.batch_size=64")


# --- signals


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGXCPU"])
def test_every_signal_to_end_leaves_a_checkpoint_and_a_summary(bnn_train, summary, stopping_at, name):
    before = signal.getsignal(getattr(signal, name))  # SIG_IGN for SIGHUP under nohup
    stopping_at(1, 2, getattr(signal, name), signal.SIGTERM)  # queues send a second signal
    done = bnn_train(*TINY, "hydra.run.dir=k")
    assert done.code == 130 and done.err == "" and summary("k")["status"] == "interrupted"
    assert checkpoint.load(Path("k/checkpoints/last.pt"))["progress"]["batch"] == 3
    assert signal.getsignal(getattr(signal, name)) == before


def test_an_ignored_hangup_stays_ignored_as_under_nohup(bnn_train, stopping_at):
    stopping_at(1, 2, signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert bnn_train(*TINY, "hydra.run.dir=k").code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_before_the_training_ends_the_command_and_leaves_nothing(bnn_train, tmp_path, monkeypatch):
    from bnn_exp.training import plan

    monkeypatch.setattr(plan, "read", lambda dataset: os.kill(os.getpid(), signal.SIGTERM))
    done = bnn_train(*TINY, "hydra.run.dir=k")
    assert done.code == 130 and done.err == "bnn-train: interrupted\n" and list(tmp_path.iterdir()) == []


def test_a_signal_that_a_library_swallows_ends_the_run_before_its_first_step(bnn_train, summary, monkeypatch):
    from bnn_exp.training import run

    prepare = run.prepare

    def swallow(*given):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGUSR1)
        return prepare(*given)

    monkeypatch.setattr(run, "prepare", swallow)
    assert bnn_train(*TINY, "hydra.run.dir=k").code == 130
    assert summary("k")["status"] == "interrupted" and summary("k")["epochs"] == 0


def test_a_signal_while_the_end_is_written_comes_too_late_for_a_run_and_ends_a_sweep(bnn_train, summary, monkeypatch):
    from bnn_exp.training import run

    save = run.save_model
    monkeypatch.setattr(run, "save_model", lambda *given: os.kill(os.getpid(), signal.SIGTERM) or save(*given))
    assert bnn_train(*TINY, "hydra.run.dir=k").code == 0 and summary("k")["status"] == "completed"
    done = bnn_train("-m", *TINY, "seed=0,1", "hydra.sweep.dir=s")
    assert done.code == 130 and summary("s/0")["status"] == "completed" and not Path("s/1").exists()
    assert Path("s/sweep.md").exists()


def test_only_a_second_ctrl_c_ends_a_training_at_once():
    with signals.stop_on_signals() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop() and stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not signals.asked()


def test_the_handler_of_a_library_gets_the_signal_when_the_training_has_ended():
    got, before = [], signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
    try:
        with signals.stop_on_signals():
            signal.raise_signal(signal.SIGUSR2)
            assert got == []
        assert got == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_a_signal_ends_ranks_together(tmp_path, name):
    arguments = [*ENDLESS, "engine.devices=2", "hydra.run.dir=k"]
    run = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in run.stdout:
        if line.startswith("epoch 2/"):
            break
    os.killpg(run.pid, getattr(signal, name))  # queues signal all processes of a job
    assert "next: bnn-train resume=" in run.communicate(timeout=60)[0] and run.returncode == 130
    assert json.loads((tmp_path / "k/summary.json").read_text())["status"] == "interrupted"


# --- plots, pages and output


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no_such_backend"])
def test_pictures_need_no_backend(tmp_path, backend):
    code = (
        "import os; from bnn_exp.records.matplotlib_figure import new_figure\n"
        "figure = new_figure(2, 1); figure.subplots().plot([1, 2]); figure.savefig('c.png'); print(os.environ['MPLBACKEND'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | {"MPLBACKEND": backend}, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{backend}\n", done.stderr
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_goes_on_without_what_only_shows_it(bnn_train, summary):
    """Every plot, page, table and printed line fails. The run completes; train.log and the summary name each failure once."""

    def broken(*_, **__):
        raise ValueError("no colours left")

    shows = ("plots.samples", "plots.curves", "plots.kernels", "html.write_run_page")
    with ExitStack() as stack:
        for name in shows:
            stack.enter_context(patch(f"bnn_exp.records.{name}", broken))
        stack.enter_context(patch("rich.console.Console.print", broken))
        done = bnn_train(*TINY, "hydra.run.dir=k")
    assert done.code == 0 and done.err == "" and summary("k")["status"] == "completed" and len(epochs(Path("k"))) == 3
    log = Path("k/train.log").read_text()
    for name in ("samples.png", "curves.png", "kernels.png", "report.html"):
        said = f"{name} is left out, since it failed: no colours left"
        assert log.count(f"WARNING {said}") == summary("k")["warnings"].count(said) == 1


def test_a_run_lists_the_files_that_it_has_written(bnn_train, summary):
    """The console warns of a file that can't be written, and leaves this file out of the list of files."""

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    with patch("bnn_exp.records.plots.curves", broken), patch("bnn_exp.records.html.write_run_page", broken):
        done = bnn_train(*TINY, "hydra.run.dir=k")
    assert done.code == 0
    (line,) = (line for line in done.out.splitlines() if line.startswith("in "))
    assert set(line.rpartition(": ")[2].split(", ")) == {
        "model.safetensors", "metrics.jsonl", "summary.json", "checkpoints/", "samples.png", "kernels.png",
    }  # fmt: skip
    for name in ("curves.png", "report.html"):
        assert f"warning: {name} is left out" in done.out
        assert sum(text.startswith(name) for text in summary("k")["warnings"]) == 1


def test_a_sweep_lists_the_files_that_it_has_written(bnn_train, copy_of_run, tmp_path):
    for name in ("a", "b"):
        copy_of_run(tmp_path / name, *TINY)
    assert "sweep.png" in bnn_train("task=report", "from=[a,b]", "hydra.run.dir=all").err

    def broken(*_, **__):
        raise ValueError("no colours left")

    with patch("bnn_exp.records.sweeps.plot.draw", broken):
        done = bnn_train("task=report", "from=[a,b]", "hydra.run.dir=all")
    assert done.code == 0 and "in all: sweep.csv, sweep.md, report.html" in done.err and not Path("all/sweep.png").exists()


@pytest.mark.parametrize("output", [">&-", ">/dev/full", ">/dev/full 2>&1", "| head -1", ">&- 2>&- <&-"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_does_not_end_a_run(tmp_path, output):
    """A new process prints lines and writes a file. If its output is closed or full, the file has its own content alone."""
    code = (
        "import sys; from pathlib import Path; from bnn_exp.records.standard_streams import forgiving_output\n"
        "with forgiving_output():\n"
        "    file = open('f', 'wb', buffering=0)\n"
        "    for _ in range(3): print('a line ' * 5000, flush=True); print('an error', file=sys.stderr)\n"
        "    file.write(b'whole'); file.close()\n"
        "sys.exit(3)"
    )
    (tmp_path / "code.py").write_text(code)
    done = subprocess.run(["bash", "-c", f"{{ {sys.executable} code.py; echo $? > code; }} {output}"], cwd=tmp_path)
    assert done.returncode in (0, 141) and (tmp_path / "code").read_text() == "3\n"
    assert (tmp_path / "f").read_bytes() == b"whole"


def test_a_name_that_the_output_cannot_spell_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with forgiving_output():
        print("café 犬 784×256")
    assert raw.getvalue() == b"caf\\xe9 \\u72ac 784\\xd7256\n"


def test_a_full_output_is_warned_of_once(caplog):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    stream = Forgiving(Full(), "standard output")
    with caplog.at_level(logging.INFO, "bnn_exp"):
        print("one", "two", file=stream, flush=True)
        print("three", file=stream, flush=True)
    assert [(record.levelname, "No space" in record.message) for record in caplog.records] == [("WARNING", True)]


# --- the disk


FULL = OSError(28, os.strerror(28))


@pytest.mark.parametrize("file", ["config.yaml", "checkpoints/last.pt", "metrics.jsonl", "model.safetensors"])
def test_a_full_disk_is_said_in_a_line_and_a_resume_goes_on(bnn_train, summary, copy_of_run, tmp_path, monkeypatch, file):
    """The disk is full when the file is first written, or for a file of every epoch the second time."""
    straight = copy_of_run(tmp_path / "straight", *TINY)
    place, written, fsync = tmp_path / "k" / file, [], os.fsync

    def full(number):
        if place.name in Path(f"/proc/self/fd/{number}").readlink().name:
            written.append(place.exists())
            if len(written) == 2 or place.suffix in (".yaml", ".safetensors"):
                raise FULL
        fsync(number)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        done = bnn_train(*TINY, "hydra.run.dir=k")
    assert done.code == 1 and len(done.err.splitlines()) == 2
    assert f"{place.parent}: can't be written (No space left on device" in done.err and "resume=" in done.err
    assert summary("k")["status"] == "failed" and "No space" in summary("k")["error"]
    assert not list(Path("k").rglob(".*"))
    assert bnn_train(*TINY, "hydra.run.dir=k", "resume=auto").code == 0
    assert summary("k")["bits_sha256"] == summary(straight)["bits_sha256"]
    assert timeless(epochs(Path("k"))) == timeless(epochs(straight))


@pytest.mark.parametrize("sweeper", [(), ("sweeper=optuna", "sweep.trials=2")])
def test_a_sweep_that_finds_no_room_names_its_folder(bnn_train, monkeypatch, tmp_path, sweeper):
    from omegaconf import OmegaConf

    if sweeper:
        pytest.importorskip("optuna")

    def full(*_, **__):
        raise FULL

    with monkeypatch.context() as context:
        context.setattr(OmegaConf, "save", full)
        done = bnn_train("-m", *TINY, "delta=0.1,0.2", "hydra.sweep.dir=s", *sweeper)
    assert done.code == 1 and "None" not in done.err and "Traceback" not in done.err
    first, second = done.err.splitlines()
    assert re.fullmatch(r"bnn-train: failed: (\S*/)?s: can't be written \(No space left on device.*\)", first)
    assert second == "allowed: hydra.sweep.dir=FOLDER where there is room" and not any((tmp_path / "s").rglob("*"))


def test_a_line_of_metrics_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "metrics.jsonl"
    metrics.append(file, {"epoch": 1})
    with monkeypatch.context() as context, pytest.raises(NotWritten, match=str(tmp_path)):
        context.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(FULL))
        metrics.append(file, {"epoch": 2})
    assert file.read_text() == '{"epoch": 1}\n'
    assert metrics.keep(file, 2, {"epoch": 2}) == [{"epoch": 1}, {"epoch": 2}] == metrics.read(file)
    assert metrics.keep(file, 1, {"epoch": 2}) == [{"epoch": 1}] == metrics.read(file)


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path):
    for name in (".last.pt.17.part", ".summary.json.4.part", ".mine.part", "part", ".last.pt.17"):
        (tmp_path / name).write_text("x")
    files.remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".last.pt.17", ".mine.part", "part"]


@pytest.fixture
def small_disk(tmp_path):
    """Runs a shell command beside the folder `disk`, a file system of 64 kB. The command may remount it as read-only."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    (tmp_path / "disk").mkdir()

    def run(command: str) -> subprocess.CompletedProcess:
        script = f"mount -t tmpfs -o size=64k t disk && {command}"
        return subprocess.run(
            ["unshare", "-m", "bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    return run


def test_a_full_and_a_read_only_file_system_have_their_reason_said(small_disk):
    code = (
        "import torch; from pathlib import Path\n"
        "from bnn_exp.errors import NotWritten; from bnn_exp.records import checkpoint\n"
        "save = lambda size: checkpoint.save(Path('disk/c/last.pt'), {'a': torch.zeros(size)})\n"
        "try: save(2_000)\n"
        "except NotWritten as error: print(error)\n"
        "try: save(200_000)\n"
        "except NotWritten as error: print(error)\n"
        "found = [file.name for file in Path('disk').rglob('*') if file.is_file()]\n"
        "print(found, len(checkpoint.load(Path('disk/c/last.pt'))['a']) if found else '')"
    )
    done = small_disk(f'{sys.executable} -c "{code}"; mount -o remount,ro disk; {sys.executable} -c "{code}"')
    full, kept, *read_only, still = done.stdout.splitlines()
    assert full.startswith("disk/c: can't be written (No space left on device; ") and kept == "['last.pt'] 2000", done
    assert len(read_only) == 2 and all("Read-only file system" in line for line in read_only) and still == kept


def test_a_read_only_place_is_refused_before_any_work(small_disk):
    done = small_disk(f"mount -o remount,ro disk && {shlex.join(COMMAND)} hydra.run.dir=disk/k")
    assert done.returncode == 2 and "hydra.run.dir=disk/k: " in done.stderr and len(done.stderr.splitlines()) == 2
