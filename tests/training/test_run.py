"""Tests a run from the command line: its files, its metrics, and how it stops, resumes and fails."""

import signal
import subprocess
import time

import pytest
import torch
from helpers import COMMAND, SMALL, TIMES, epochs, rest_slow, small_trainer, timeless, write_dataset

from bnn_exp import load_model, verify_binary


def test_a_run_leaves_all_that_it_promises(bnn_train, summary):
    done = bnn_train(*SMALL)
    assert done.code == 0 and len(done.runs) == 1 and ", engine=dense; in " in " ".join(done.out.split())
    directory, result = done.runs[0], summary(done.runs[0])
    files = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}
    assert files == {
        "config.yaml", "train.log", "metrics.jsonl", "summary.json", "model.safetensors", "curves.png",
        "samples.png", "kernels.png", "report.html", "checkpoints/last.pt", "checkpoints/best.pt",
    }  # fmt: skip
    weights = 64 * 32 + 2 * 32 * 32 + 32 * 10
    assert result["status"] == "completed" and result["error"] is None and result["seed"] == 3
    assert result["binary_parameters"] == weights and result["real_parameters"] == 2 * (3 * 32 + 10)
    assert result["binary_verified"] is True and len(result["bits_sha256"]) == 64
    assert {"torch", "hydra-core", "bnn-exp", "python"} <= set(result["versions"]) and "git_commit" in result
    lines = epochs(directory)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    expected = {"epoch", "train_loss", "train_accuracy", "test_accuracy", "delta", "flips", "ones", *TIMES}
    assert all(set(line) == expected for line in lines)
    assert result["test_accuracy"] == lines[-1]["test_accuracy"]
    assert result["best_test_accuracy"] == max(line["test_accuracy"] for line in lines)
    assert list(lines[0]["flips"]) == [f"layers.{i}.weight" for i in range(4)]
    network, about = load_model(directory)
    assert verify_binary(network) == lines[-1]["ones"]
    assert about["image_shape"] == [1, 8, 8]
    assert sum(sum(row) for row in result["confusion"]) == 360
    right = sum(result["confusion"][i][i] for i in range(10))
    assert 100 * right / 360 == pytest.approx(result["test_accuracy"])
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = (directory / "train.log").read_text()
    assert "epoch 4/4" in log and "layers.3" in log
    for text in ("epoch 1/4", "epoch 4/4", "multiply-adds", "model.safetensors", "next (", ": bnn-train "):
        assert text in done.out


def test_with_validation_rows_they_choose_the_best_epoch(bnn_train, summary):
    from bnn_exp.records import checkpoint

    run = bnn_train(*SMALL, "trainer.epochs=8", "dataset.validation=0.2", "dataset.augment=standard").runs[0]
    lines, result = epochs(run), summary(run)
    best = max(lines, key=lambda line: line["validation_accuracy"])  # the first epoch among equal ones
    assert result["best_epoch"] == best["epoch"] == checkpoint.load(run / "checkpoints/best.pt")["progress"]["epoch"]
    assert result["best_validation_accuracy"] == best["validation_accuracy"]
    assert result["best_test_accuracy"] == best["test_accuracy"]
    assert "1,150 train, 287 validation, 360 test rows" in (run / "train.log").read_text()


def test_the_default_learns_digits(bnn_train, summary):
    done = bnn_train()
    assert summary(done.runs[0])["test_accuracy"] >= 95


def test_the_saved_network_reaches_the_recorded_accuracy(bnn_train, summary):
    from bnn_exp.data import sources
    from bnn_exp.data.dataset import Dataset

    done = bnn_train(*SMALL)
    network, _ = load_model(done.runs[0])
    test = Dataset.from_arrays(sources.read("digits"), torch.device("cpu")).test
    x, labels = test.images.float() / 255, test.labels
    accuracy = 100 * (network(x).argmax(1) == labels).double().mean().item()
    assert accuracy == pytest.approx(summary(done.runs[0])["test_accuracy"])


@pytest.mark.parametrize("mask", rest_slow(["random", "ewm", "top", "wpm"], 2))
def test_the_same_seed_gives_the_same_bits(bnn_train, summary, mask):
    arguments = (*SMALL, f"optimizer.mask={mask}", "trainer.epochs=2")
    first, again = bnn_train(*arguments), bnn_train(*arguments)
    other = bnn_train(*arguments[:3], "seed=4", *arguments[4:])
    hashes = [summary(run)["bits_sha256"] for run in other.runs]
    assert len(first.runs) == 1 and len(again.runs) == 2
    assert hashes[0] == hashes[1] != hashes[2]
    assert timeless(epochs(other.runs[0])) == timeless(epochs(other.runs[1]))


def test_a_training_stopped_between_two_batches_goes_on_as_if_it_had_not(tmp_path):
    """A new trainer loads the state of the middle of an epoch from a checkpoint file."""
    from bnn_exp.records import checkpoint

    def trainer():
        return small_trainer(mask="ewm", real="adam")

    straight = trainer()
    expected = [straight.epoch() | straight.evaluate()[0] for _ in range(3)]
    stopped, batches = trainer(), iter(range(100))
    stopped.epoch()
    assert stopped.epoch(stop=lambda: next(batches) == 5) is None and stopped.progress.batch == 5
    checkpoint.save(tmp_path / "last.pt", stopped.state())
    resumed = trainer()
    resumed.load(checkpoint.load(tmp_path / "last.pt"))
    lines = [resumed.epoch() | resumed.evaluate()[0] for _ in range(2)]
    assert timeless(lines) == timeless(expected[1:])
    for a, b in zip(straight.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


BIG = ("model.hidden_size=512", "trainer.epochs=6", "trainer.batch_size=32", "engine.threads=1", "real_optimizer=adam")


def start(folder, *arguments):
    run = subprocess.Popen(
        [*COMMAND, *arguments, "hydra.run.dir=run"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    for _ in range(1200):
        if (folder / "run/metrics.jsonl").exists() and len(epochs_so_far(folder / "run")) >= 2:
            return run
        time.sleep(0.05)
    raise AssertionError(run.communicate()[0])


def epochs_so_far(directory):
    return (directory / "metrics.jsonl").read_text().splitlines()


@pytest.fixture
def never_stopped(copy_of_run, tmp_path_factory):
    return copy_of_run(tmp_path_factory.mktemp("straight") / "run", *BIG)


def test_a_killed_run_resumes_to_the_same_bits_and_metrics(never_stopped, tmp_path, bnn_train, summary):
    run = start(tmp_path, *BIG)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "run/summary.json").exists()
    assert len(epochs_so_far(tmp_path / "run")) < 6
    resumed = bnn_train("resume=run")
    assert resumed.code == 0, resumed.err
    assert summary(tmp_path / "run")["bits_sha256"] == summary(never_stopped)["bits_sha256"]
    assert timeless(epochs(tmp_path / "run")) == timeless(epochs(never_stopped))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run"]


def test_ctrl_c_ends_cleanly_and_resumes(never_stopped, tmp_path, bnn_train, summary):
    run = start(tmp_path, *BIG)
    run.send_signal(signal.SIGINT)
    out = run.communicate(timeout=60)[0].decode()
    assert run.returncode == 130 and "Traceback" not in out and "next: bnn-train resume=" in out
    stopped = summary(tmp_path / "run")
    assert stopped["status"] == "interrupted" and stopped["binary_verified"]
    assert (tmp_path / "run/model.safetensors").exists() and (tmp_path / "run/curves.png").exists()
    resumed = bnn_train("resume=run")
    assert resumed.code == 0 and "resumed after epoch" in resumed.out
    assert summary(tmp_path / "run")["bits_sha256"] == summary(never_stopped)["bits_sha256"]
    assert timeless(epochs(tmp_path / "run")) == timeless(epochs(never_stopped))


def test_ctrl_c_in_the_first_epoch_ends_as_cleanly(bnn_train, summary, monkeypatch):
    import os

    from bnn_exp.training.trainer import Trainer

    original = Trainer.train_on
    monkeypatch.setattr(Trainer, "train_on", lambda *batch: os.kill(os.getpid(), signal.SIGINT) or original(*batch))
    done = bnn_train(*SMALL)
    result = summary(done.runs[0])
    assert done.code == 130 and "Traceback" not in done.err and "next: bnn-train resume=" in done.out
    assert result["status"] == "interrupted" and result["error"] is None and result["best_test_accuracy"] is None
    monkeypatch.undo()
    resumed = bnn_train(f"resume={done.runs[0]}")
    assert resumed.code == 0 and "resumed after epoch 0, batch 1" in resumed.out


def test_a_finished_run_says_so(bnn_train, summary):
    run = bnn_train(*SMALL).runs[0]
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    done = bnn_train(f"resume={run}")
    assert done.code == 0 and "is finished" in done.err
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_a_resumed_run_keeps_its_configuration(bnn_train):
    run = bnn_train(*SMALL).runs[0]
    done = bnn_train(f"resume={run}", "trainer.epochs=9")
    assert done.code == 2 and "trainer.epochs=9" in done.err and len(done.err.splitlines()) == 2


def test_a_bad_checkpoint_is_refused_and_nothing_changes(bnn_train):
    run = bnn_train(*SMALL).runs[0]
    (run / "summary.json").unlink()
    file = run / "checkpoints/last.pt"
    good = file.read_bytes()

    def attempt(content, said):
        file.unlink() if content is None else file.write_bytes(content)
        before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
        done = bnn_train(f"resume={run}")
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) <= 2
        assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file()} == before

    (run / "checkpoints/best.pt").unlink()  # the run would resume from it
    attempt(good[: len(good) // 2], "not a readable checkpoint")
    attempt(b"", "not a readable checkpoint")
    foreign = run.parent / "foreign.pt"
    torch.save({"state_dict": {}}, foreign)
    attempt(foreign.read_bytes(), "not a checkpoint of this program")
    torch.save({"format": "bnn_exp checkpoint 1", "data": "other", "seconds": 0.0}, foreign)
    attempt(foreign.read_bytes(), "its dataset has changed")
    attempt(None, "no such checkpoint")


def test_a_weight_that_is_no_bit_ends_the_run(bnn_train, summary, monkeypatch):
    from bnn_exp.optim import HyperMask

    original = HyperMask.count

    def faulty(self):
        original(self)
        if self.param_groups[0]["step"] == 60:
            with torch.no_grad():
                self.param_groups[0]["params"][2][4, 7] = 0.5

    monkeypatch.setattr(HyperMask, "count", faulty)
    done = bnn_train(*SMALL, "optimizer=hypermask", "engine=dense")
    result = summary(done.runs[0])
    assert done.code == 1 and "layers.2.weight[4, 7] is 0.5" in done.err
    assert result["status"] == "failed" and result["binary_verified"] is False and "layers.2.weight[4, 7]" in result["error"]
    assert len(epochs(done.runs[0])) == 2 and "layers.2.weight" in (done.runs[0] / "train.log").read_text()


def test_a_loss_that_is_no_number_ends_the_run(bnn_train, summary):
    done = bnn_train(*SMALL, "real_optimizer=sgd", "real_optimizer.lr=1e38")
    assert done.code == 1 and "the loss is" in done.err and "epoch 1, batch" in done.err and "Traceback" not in done.err
    result = summary(done.runs[0])
    assert result["status"] == "failed" and "the loss is" in result["error"]


def test_an_unexpected_error_is_a_line_here_and_a_traceback_in_the_log(bnn_train, summary, monkeypatch):
    from bnn_exp.training.trainer import Trainer

    def broken(self, rows, epoch, batch):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Trainer, "train_on", broken)
    done = bnn_train(*SMALL)
    assert done.code == 1 and "out of luck" in done.err and "Traceback" not in done.err
    assert summary(done.runs[0])["status"] == "failed"
    assert "Traceback" in (done.runs[0] / "train.log").read_text()


def test_binsfos_network_has_nothing_real_to_train(bnn_train, summary, tmp_path):
    rng = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (6, 5), dtype=torch.uint8, generator=rng).numpy() for _ in range(80)]
    folder = write_dataset(tmp_path / "grey", images[:60], images[60:])
    done = bnn_train("experiment=binsfo_mlp", f"dataset.path={folder}", "trainer.epochs=2", "trainer.batch_size=20")
    result = summary(done.runs[0])
    assert done.code == 0 and result["real_parameters"] == 0 and result["binary_verified"]
    assert "delta" in epochs(done.runs[0])[0] and epochs(done.runs[0])[0]["lr"] == pytest.approx(10 * (20 / 96) ** 0.5)


def test_smoke_is_short(bnn_train):
    lines = epochs(bnn_train("trainer=smoke", "trainer.batch_size=16").runs[0])
    assert len(lines) == 2  # each of at most ten of the ninety batches


@pytest.mark.slow
def test_mnist_by_the_cnn(bnn_train, summary, mnist_folder):
    done = bnn_train("model=bncvl", "dataset=mnist", f"dataset.path={mnist_folder}", "trainer.epochs=3")
    assert summary(done.runs[0])["test_accuracy"] >= 98.5


@pytest.mark.slow
def test_mnist_by_the_top_mask(bnn_train, summary, mnist_folder):
    done = bnn_train(
        "model=mlp", "delta=0.01", "dataset=mnist", f"dataset.path={mnist_folder}", "model.hidden_size=256",
        "trainer.epochs=20", "trainer.batch_size=1024", "optimizer=hypermask_top",
    )  # fmt: skip
    assert summary(done.runs[0])["test_accuracy"] >= 93.5


def test_a_terminal_gets_a_table_and_a_bar_in_long_epochs(monkeypatch):
    """A terminal shows one header and a row per epoch. The clock of the test counts 0.3 s per batch."""
    import io

    from rich.console import Console

    from bnn_exp.records.report import Report

    clock = iter(range(10**6))
    monkeypatch.setattr("bnn_exp.records.report.monotonic", lambda: 0.3 * next(clock))
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120, highlight=False)
    report = Report(2, 10, 100, terminal)
    line = {"train_loss": 1.5, "train_accuracy": 50.0, "test_accuracy": 40.0, "flips": {"a": 7}, "ones": {"a": 50}}
    line |= {"train_seconds": 30.0, "eval_seconds": 1.0, "images_per_second": 1234.0}
    for epoch in (1, 2):
        for batch in range(10):
            report.tick(batch + 1)
        report.epoch(line | {"epoch": epoch})
    out = terminal.file.getvalue()
    assert out.count("test %") == 1 and "1/2" in out and "2/2" in out and "0:00:31" in out and "50.00" in out
    assert "10/10" in out and "━" in out
    monkeypatch.setattr("bnn_exp.records.report.monotonic", lambda: 0.0)
    quick = Report(1, 10, 100, Console(file=io.StringIO(), force_terminal=True))
    quick.tick(1)
    quick.tick(2)
    assert quick.console.file.getvalue() == ""
