"""`min_accuracy`: a test accuracy that is too low has its own exit code."""

import json

import pytest

from bnn_exp.commands.min_accuracy import Gate

SMALL = ("trainer=smoke", "trainer.epochs=2", "model.hidden_size=8")
TOO_LOW = 3


@pytest.mark.parametrize(
    "least, accuracy, below",
    [
        (90, 89.999, True),
        (90, 90.0, False),
        (90, 90.1, False),
        (100, 99.99, True),
        (100, 100.0, False),
        (None, 1.0, False),
        (90, None, False),
    ],
)
def test_an_accuracy_is_enough_from_the_least_one_on(least, accuracy, below):
    assert bool(Gate(least).shortfall(accuracy)) is below


def test_which_network_counts_is_said_by_which():
    summary = {"status": "completed", "test_accuracy": 60.0, "best_test_accuracy": 80.0, "best_validation_accuracy": 99.0}
    assert "60.00%" in Gate(70).of_run(summary) and not Gate(70, "best").of_run(summary)
    assert "80.00% of the best epoch" in Gate(90, "best").of_run(summary)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_did_not_end_has_another_exit_code(status):
    assert not Gate(90).of_run({"status": status, "test_accuracy": 10.0}) and not Gate(90).of_run(None)


def test_a_training_below_it_ends_with_3_and_all_files(bnn_train, summary, tmp_path):
    done = bnn_train(*SMALL, "min_accuracy=100", "hydra.run.dir=run")
    found = summary(tmp_path / "run")
    assert done.code == TOO_LOW and found["status"] == "completed" and (tmp_path / "run" / "report.html").is_file()
    assert f"test accuracy {found['test_accuracy']:.2f}% is below min_accuracy=100" in done.err
    assert "min_accuracy" not in (tmp_path / "run" / "config.yaml").read_text()


def test_a_finished_run_is_asked_by_resume_and_by_evaluate(bnn_train, copy_of_run, summary, tmp_path):
    run = copy_of_run(tmp_path / "run", *SMALL)
    last, best = (summary(run)[key] for key in ("test_accuracy", "best_test_accuracy"))
    for accuracy, which in ((last, ()), (best, ("which=best",))):
        under, over = f"min_accuracy={accuracy - 0.01}", f"min_accuracy={accuracy + 0.01}"
        assert bnn_train("resume=run", *which, under).code == 0
        for command in (("resume=run",), ("task=evaluate", "from=run"), (*SMALL, "hydra.run.dir=run", "resume=auto")):
            done = bnn_train(*command, *which, over)
            assert done.code == TOO_LOW and "is below min_accuracy=" in done.err
    assert bnn_train("task=evaluate", "from=run", f"min_accuracy={last - 0.01}").code == 0
    assert json.loads((run / "evaluation.json").read_text())["accuracy_float"] == pytest.approx(last)


def test_an_interrupted_run_that_goes_on_is_asked_at_its_end(bnn_train, copy_of_run, tmp_path):
    run = copy_of_run(tmp_path / "run", *SMALL)
    (run / "summary.json").unlink()  # as if the run was killed
    assert bnn_train("resume=run", "min_accuracy=100").code == TOO_LOW


@pytest.mark.slow
def test_a_sweep_has_the_worst_code_of_its_runs(bnn_train):
    sweep = ("-m", "trainer=smoke", "trainer.epochs=1", "model.hidden_size=8", "seed=0,1")
    done = bnn_train(*sweep, "min_accuracy=100", "hydra.sweep.dir=low")
    assert done.code == TOO_LOW and "2 of 2 runs are below min_accuracy=100" in done.err
    done = bnn_train(*sweep, "min_accuracy=100", "hydra.sweep.dir=low", "sweep.resume=auto")
    assert done.code == TOO_LOW  # all runs are finished already
    assert bnn_train(*sweep, "min_accuracy=1", "hydra.sweep.dir=low", "sweep.resume=auto").code == 0
    assert bnn_train(*sweep[:-1], "trainer.batch_size=64,1", "min_accuracy=100").code == 1


@pytest.mark.parametrize(
    "given",
    [
        ["min_accuracy=0.9"],
        ["min_accuracy=101"],
        ["min_accuracy=nan"],
        ["min_accuracy=high"],
        ["task=export", "from=x", "min_accuracy=90"],
        ["task=predict", "from=x", "input=y", "min_accuracy=90"],
        ["-m", "seed=0,1", "min_accuracy=80,90"],
        ["which=best"],
    ],
)
def test_what_it_can_not_be_is_refused(bnn_train, tmp_path, given):
    done = bnn_train(*given)
    assert done.code == 2 and len(done.err.strip().splitlines()) <= 3 and list(tmp_path.iterdir()) == []
