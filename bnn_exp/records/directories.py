"""Checks directories of runs and sweeps before anything is written, so nothing is overwritten. Imports no torch."""

from pathlib import Path

from bnn_exp.errors import UserError
from bnn_exp.records import runs
from bnn_exp.records.files import check_writable

RUN = ("config.yaml", "metrics.jsonl", "summary.json", "model.safetensors", "checkpoints")
SWEEP = ("multirun.yaml", "optuna.log", "sweep.csv", "sweep.md")
CHECKPOINTS = ("checkpoints/last.pt", "checkpoints/best.pt")  # a resume tries them in this order
State = dict[str, int]  # name of a file of a run: the time of its last write in nanoseconds


def state(directory: Path) -> State:
    """Returns the time of the last write, in nanoseconds, of each file of a run in `directory`. If two calls return equal
    states, no process wrote to these files between the calls."""
    files = {name: directory / name for name in (*RUN, *CHECKPOINTS)}
    return {name: file.stat().st_mtime_ns for name, file in files.items() if file.exists()}


def holds_run(directory: Path) -> bool:
    return any((directory / name).exists() for name in RUN)


def holds_sweep(directory: Path) -> bool:
    """Returns True if `directory` holds a sweep, or a report of several directories, which has files of the same names."""
    return any((directory / name).exists() for name in SWEEP)


def has_checkpoint(directory: Path) -> bool:
    return any((directory / name).is_file() for name in CHECKPOINTS)


def check_free_for_run(directory: Path) -> None:
    """Checks that a new run can be written to `directory`.

    Raises:
        UserError: the directory holds a run or a sweep already, or is not writable.
    """
    check_writable(directory, "hydra.run.dir")
    if holds_run(directory):
        raise UserError(
            f"hydra.run.dir={directory}: a run is there already ({_status(directory)})\n"
            f"allowed: resume={directory} to go on with it, resume=auto to begin or to go on, or another folder"
        )
    if holds_sweep(directory):
        raise UserError(f"hydra.run.dir={directory}: a sweep is there already\nallowed: another folder")


def check_free_for_sweep(directory: Path) -> None:
    """Checks that a new sweep can be written to `directory`. No run may lie below it, because the table of a sweep
    covers all runs below its directory.

    Raises:
        UserError: the directory holds a sweep or runs already, or is not writable.
    """
    check_writable(directory, "hydra.sweep.dir")
    check_no_run(directory)
    if holds_sweep(directory) or any(runs.find([directory])):
        raise UserError(
            f"hydra.sweep.dir={directory}: a sweep is there already, or runs are\n"
            f"allowed: sweep.resume={directory} to go on with it, sweep.resume=auto to begin or to go on, or another folder"
        )


def check_no_run(directory: Path) -> None:
    """Checks that `directory`, which is meant for a sweep, holds no run.

    Raises:
        UserError: the directory holds a run.
    """
    if holds_run(directory):
        raise UserError(
            f"hydra.sweep.dir={directory}: a run is there already ({_status(directory)}), and no sweep\nallowed: another folder"
        )


def check_no_other_run(directory: Path) -> None:
    """Checks that `directory`, which is meant for results of another run or of none, holds no run.

    Raises:
        UserError: the directory holds a run.
    """
    if holds_run(directory):
        raise UserError(f"hydra.run.dir={directory}: another run is there ({_status(directory)})\nallowed: another folder")


def check_same(given: Path, resumed: Path, key: str, resume: str) -> None:
    """Checks that a run or sweep continues in its own directory.

    Args:
        given, key: the directory for results, and the setting that names it.
        resumed, resume: the directory of the run or sweep that continues, and the setting that names it.

    Raises:
        UserError: the directories differ.
    """
    if given.resolve() != resumed.resolve():
        raise UserError(f"{key}={given}: {resume}={resumed} goes on where it lies\nallowed: {resume}={resumed} without {key}")


def _status(directory: Path) -> str:
    record = runs.read(directory)
    return record.status if record else "unfinished"
