"""Nothing is overwritten: a command refuses the directory of a run or sweep, or continues it with equal bits."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import TINY, command, contents, epochs, forkserver, timeless, write_dataset

from bnn_exp.errors import UserError
from bnn_exp.records import checkpoint, directories


def test_a_run_is_not_written_over_however_its_place_is_named(bnn_train, copy_of_run, tmp_path):
    copy_of_run(tmp_path / "k", *TINY)
    (tmp_path / "link").symlink_to("k")
    before = contents(tmp_path)
    for name in ("k", "link"):
        done = bnn_train(*TINY, "seed=5", f"hydra.run.dir={name}")
        assert done.code == 2 and f"hydra.run.dir={name}: a run is there already (completed)" in done.err
        assert f"resume={name} " in done.err and "resume=auto" in done.err and len(done.err.splitlines()) == 2
    for name in ("k/", "./k", f"../{tmp_path.name}/k", tmp_path / "k"):
        with pytest.raises(UserError, match="a run is there already"):
            directories.check_free_for_run(Path(name))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "left", ["config.yaml", "metrics.jsonl", "checkpoints/last.pt", "summary.json", "multirun.yaml", "0/config.yaml"]
)
def test_what_a_killed_run_or_sweep_leaves_is_not_written_over(tmp_path, left):
    file = tmp_path / "k" / left
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(UserError, match="k: a "):
        directories.check_free_for_sweep(tmp_path / "k")
    if "0" not in left:
        with pytest.raises(UserError, match="k: a "):
            directories.check_free_for_run(tmp_path / "k")


def test_an_empty_folder_and_one_with_foreign_files_are_free(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "queue/0").mkdir(parents=True)
    (tmp_path / "queue/slurm-17.out").write_text("begun")
    for name in ("empty", "queue", "new/one"):
        directories.check_free_for_run(tmp_path / name)
        directories.check_free_for_sweep(tmp_path / name)
    for name in ("queue/slurm-17.out", "queue/slurm-17.out/below"):
        with pytest.raises(UserError, match="is a file"):
            directories.check_free_for_run(tmp_path / name)


def test_sweeps_and_runs_keep_out_of_each_other(bnn_train, copy_of_run, tmp_path):
    copy_of_run(tmp_path / "s" / "0", *TINY)
    (tmp_path / "s/multirun.yaml").write_text("hydra: {}")
    before = contents(tmp_path)
    for wrong, said in {
        ("-m", "seed=0,1", "hydra.sweep.dir=s"): "sweep.resume=s",
        ("-m", "seed=0,1", "hydra.sweep.dir=."): "sweep.resume=.",  # the sweep's table would contain the run in s
        ("-m", "seed=0,1", "hydra.sweep.dir=s/0", "sweep.resume=auto"): "and no sweep",
        ("-m", "seed=0,1", "hydra.sweep.dir=t", "sweep.resume=s"): "hydra.sweep.dir=t",
        ("hydra.run.dir=s",): "a sweep is there",
        ("hydra.run.dir=s", "resume=auto"): "a sweep is there",
    }.items():
        done = bnn_train(*wrong, *TINY)
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 2, wrong
    for wrong, said in {("resume=s",): "a sweep, and no run", ("resume=s/0", "hydra.run.dir=t"): "hydra.run.dir=t"}.items():
        done = bnn_train(*wrong)
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 2, wrong
    assert contents(tmp_path) == before


def test_jobs_of_one_subdirectory_do_not_write_over_each_other(bnn_train, summary):
    done = bnn_train("-m", *TINY, "seed=0,1", "hydra.sweep.dir=s", "hydra.sweep.subdir=same")
    assert done.code == 1 and "hydra.sweep.subdir" in done.err
    assert [summary(run)["seed"] for run in done.runs] == [0]


@pytest.mark.slow
def test_of_several_that_begin_at_once_in_a_directory_one_runs(tmp_path):
    runs = [forkserver().Process(target=_run_here, args=(tmp_path, seed)) for seed in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(200)
    assert sorted(run.exitcode for run in runs) == [0, 2, 2, 2]
    (seed,) = [seed for seed, run in enumerate(runs) if run.exitcode == 0]
    assert f"seed: {seed}\n" in (tmp_path / "k/config.yaml").read_text()
    assert json.loads((tmp_path / "k/summary.json").read_text())["seed"] == seed


def _run_here(folder, seed):
    import sys

    os.chdir(folder)
    with open(os.devnull, "w") as sys.stdout, pytest.MonkeyPatch.context() as patch:  # noqa: PTH123
        sys.exit(command(patch, *TINY, f"seed={seed}", "engine.threads=1", "hydra.run.dir=k"))


def test_auto_begins_goes_on_and_is_finished(bnn_train, summary, copy_of_run, tmp_path, stopping_at, monkeypatch):
    straight = copy_of_run(tmp_path / "straight", *TINY)
    arguments = (*TINY, "hydra.run.dir=k", "resume=auto")
    stopping_at(1, 2, signal.SIGTERM)
    done = bnn_train(*arguments)
    assert done.code == 130 and "nothing to resume in k: the run begins" in done.out
    assert "resume: null\n" in (tmp_path / "k/config.yaml").read_text() and summary("k")["overrides"] == list(TINY)
    stopping_at(-1, 0)
    done = bnn_train(*arguments)
    assert done.code == 0 and "resumed after epoch 1, batch 3" in done.out
    assert summary("k")["bits_sha256"] == summary(straight)["bits_sha256"]
    assert timeless(epochs(tmp_path / "k")) == timeless(epochs(straight))
    before = contents(tmp_path)
    done = bnn_train(*arguments)
    assert done.code == 0 and f"test accuracy {summary('k')['test_accuracy']:.2f}%" in done.err and contents(tmp_path) == before
    for wrong, said in {"seed=5": ("seed=5", "seed=0"), "trainer.epochs=9": ("trainer.epochs=9", "trainer.epochs=3")}.items():
        done = bnn_train(*arguments, wrong)
        assert done.code == 2 and all(text in done.err for text in said) and len(done.err.splitlines()) == 2
    assert contents(tmp_path) == before


def test_auto_needs_a_place(bnn_train, tmp_path):
    for arguments, said in {
        ("resume=auto",): "hydra.run.dir=",
        ("-m", "seed=0,1", "resume=auto"): "hydra.sweep.dir=",
        ("-m", "seed=0,1", "sweep.resume=auto"): "hydra.sweep.dir=",
    }.items():
        done = bnn_train(*arguments)
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


def test_auto_begins_anew_where_a_run_died_before_its_first_checkpoint(bnn_train, summary, monkeypatch, tmp_path):
    def die(file, state):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", die)
        assert bnn_train(*TINY, "hydra.run.dir=k").code == 1
    assert (tmp_path / "k/config.yaml").exists() and summary("k")["status"] == "failed"
    assert bnn_train(*TINY, "hydra.run.dir=k", "seed=1", "resume=auto").code == 0
    assert summary("k")["status"] == "completed" and summary("k")["seed"] == 1


def test_epochs_without_a_checkpoint_are_not_written_over(bnn_train, copy_of_run, tmp_path):
    run = copy_of_run(tmp_path / "k", *TINY)
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    before = contents(run)
    done = bnn_train(*TINY, "hydra.run.dir=k", "resume=auto")
    assert done.code == 2 and "3 epochs without a checkpoint" in done.err and contents(run) == before


@pytest.mark.slow
def test_a_killed_sweep_goes_on_by_auto_in_its_directory(bnn_train, summary, stopping_at):
    arguments = ("-m", *TINY, "seed=0,1", "hydra.sweep.dir=s")
    stopping_at(1, 1, signal.SIGUSR1)
    done = bnn_train(*arguments)
    assert done.code == 130 and [run.name for run in done.runs] == ["0"] and Path("s/sweep.md").exists()
    stopping_at(-1, 0)
    done = bnn_train(*arguments, "sweep.resume=auto")
    assert done.code == 0 and "resumed after epoch 1, batch 2" in done.out
    assert [(run.name, summary(run)["seed"]) for run in done.runs] == [("0", 0), ("1", 1)]
    again = bnn_train(*arguments, "resume=auto")
    assert again.code == 0 and again.err.count("is finished") == 2


def test_a_job_that_a_queue_starts_again_goes_on_in_its_directory(bnn_train, summary, stopping_at, monkeypatch):
    """Requeues a job with the same overrides, as the signal handler of submitit does."""
    from bnn_exp import cli
    from bnn_exp.training import signals
    from bnn_exp.training.trainer import Trainer

    jobs, original, given = [], cli.job, Trainer.train_on

    def job(composed):
        before = signal.signal(signal.SIGUSR2, lambda *_: jobs.append("asked for again"))
        try:
            with monkeypatch.context() as patch:
                patch.setattr(signals, "outermost", None)  # the process of a job is in no block of the command
                result = original(composed)
        except KeyboardInterrupt:
            assert jobs == ["asked for again"]
            monkeypatch.setattr(Trainer, "train_on", given)
            result = original(composed)
        finally:
            signal.signal(signal.SIGUSR2, before)
        return result

    monkeypatch.setattr(cli, "job", job)
    stopping_at(1, 2, signal.SIGUSR2)
    done = bnn_train("-m", *TINY, "seed=0", "hydra.sweep.dir=s")
    assert "resumed after epoch 1, batch 3" in done.out and summary("s/0")["status"] == "completed"


def test_a_damaged_checkpoint_gives_way_to_the_best_one_and_to_the_same_bits(bnn_train, summary, copy_of_run, tmp_path):
    straight = copy_of_run(tmp_path / "straight", *TINY)
    run = copy_of_run(tmp_path / "k", *TINY)
    (run / "summary.json").unlink()
    last, best = run / "checkpoints/last.pt", run / "checkpoints/best.pt"
    last.write_bytes(last.read_bytes()[:-100])
    epoch = checkpoint.load(best)["progress"]["epoch"]
    done = bnn_train("resume=k")
    assert done.code == 0 and "last.pt: not a readable checkpoint" in done.out and f"after epoch {epoch}" in done.out
    assert summary(run)["bits_sha256"] == summary(straight)["bits_sha256"]
    assert timeless(epochs(run)) == timeless(epochs(straight))


@pytest.mark.parametrize("moment", ["best", "last"])
def test_a_kill_between_the_files_of_an_epoch_loses_none_of_them(
    bnn_train, summary, copy_of_run, tmp_path, monkeypatch, moment
):
    """A copy of the directory, made after best.pt or last.pt and before the line in metrics.jsonl, is what a kill leaves.

    The resumed run does not train that epoch again.
    """
    from bnn_exp.training.trainer import Trainer

    straight = copy_of_run(tmp_path / "straight", *TINY)

    with monkeypatch.context() as patch:
        save = checkpoint.save

        def save_and_copy(file, state):
            save(file, state)
            if state["progress"]["epoch"] == 1 and file.stem == moment:
                shutil.copytree(tmp_path / "k", tmp_path / "killed")

        patch.setattr(checkpoint, "save", save_and_copy)
        assert bnn_train(*TINY, "hydra.run.dir=k").code == 0
    trained, epoch = [], Trainer.epoch
    monkeypatch.setattr(Trainer, "epoch", lambda self, *given: trained.append(self.progress.epoch) or epoch(self, *given))
    assert bnn_train("resume=killed").code == 0
    assert trained == [1, 2] and summary("killed")["bits_sha256"] == summary(straight)["bits_sha256"]
    assert timeless(epochs(tmp_path / "killed")) == timeless(epochs(straight))


def test_a_run_goes_on_with_its_data_moved_and_with_no_other(bnn_train, summary, tmp_path, stopping_at):
    rng = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (6, 5), dtype=torch.uint8, generator=rng).numpy() for _ in range(60)]
    folder = write_dataset(tmp_path / "here", pictures[:40], pictures[40:])
    other = write_dataset(tmp_path / "other", pictures[20:], pictures[:20])
    arguments = (*TINY, "trainer.batch_size=8", "dataset=mnist")
    assert bnn_train(*arguments, f"dataset.path={folder}", "hydra.run.dir=straight").code == 0
    stopping_at(1, 2, signal.SIGHUP)
    assert bnn_train(*arguments, f"dataset.path={folder}", "hydra.run.dir=k").code == 130
    stopping_at(-1, 0)
    shutil.move(folder, tmp_path / "there")
    before = contents(tmp_path / "k")
    for wrong, said in {
        ("resume=k",): "dataset.path=FOLDER",
        ("resume=k", f"dataset.path={other}"): "its dataset has changed",
        ("resume=k", "dataset.path=nowhere"): "dataset.path=",
        ("resume=k", "dataset=cifar10", "dataset.path=there"): "dataset=cifar10",
    }.items():
        done = bnn_train(*wrong)
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 2, done.err
    assert contents(tmp_path / "k") == before
    assert bnn_train("resume=k", "dataset.path=there").code == 0
    assert f"path: {tmp_path / 'there'}\n" in (tmp_path / "k/config.yaml").read_text()
    assert summary("k")["bits_sha256"] == summary("straight")["bits_sha256"]


def test_a_sweep_goes_on_with_its_data_moved(bnn_train, summary, tmp_path):
    pictures = [torch.full((6, 5), i, dtype=torch.uint8).numpy() for i in range(60)]
    write_dataset(tmp_path / "here", pictures[:40], pictures[40:])
    arguments = ("-m", *TINY, "trainer.batch_size=8", "dataset=mnist", "hydra.sweep.dir=s")
    assert bnn_train(*arguments, "seed=0", "dataset.path=here").code == 0
    shutil.move(tmp_path / "here", tmp_path / "there")
    done = bnn_train(*arguments, "seed=0,1", "dataset.path=there", "sweep.resume=auto")
    assert done.code == 0 and "s/0 is finished" in done.err and [run.name for run in done.runs] == ["0", "1"]


def test_a_finished_run_of_a_sweep_stays_when_its_logger_is_gone(bnn_train, copy_of_run, tmp_path, monkeypatch):
    from bnn_exp.records import loggers

    arguments = ("-m", *TINY, "hydra.sweep.dir=s")
    copy_of_run(tmp_path / "s/0", *TINY)
    before = Path("s/0/summary.json").read_bytes()

    def refuse(settings):
        raise UserError("logger=none: not installed")

    monkeypatch.setattr(loggers, "check", refuse)
    assert bnn_train(*arguments, "sweep.resume=auto").code == 0
    assert Path("s/0/summary.json").read_bytes() == before


def test_configurations_are_compared_but_for_what_may_change():
    from helpers import plain_config

    from bnn_exp.training.resume import difference

    values = {key: value for key, value in plain_config().items() if key in ("model", "optimizer", "trainer", "engine", "seed")}
    assert difference(values, dict(values)) is None
    assert difference(values, values | {"seed": 1}) == ("seed", 0, 1)
    assert difference(values, values | {"engine": values["engine"] | {"name": "dense"}}) is None
    assert difference(values, values | {"engine": values["engine"] | {"name": "dense"}}, ()) == (
        "engine.name", "auto", "dense",
    )  # fmt: skip
