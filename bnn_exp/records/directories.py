"""Directories of runs and sweeps, looked at before anything is written, so that none is written over. Imports no torch."""

from pathlib import Path

from bnn_exp.errors import UserError
from bnn_exp.records import runs
from bnn_exp.records.files import check_writable

RUN = ("config.yaml", "metrics.jsonl", "summary.json", "model.safetensors", "checkpoints")
SWEEP = ("multirun.yaml", "optuna.log", "sweep.csv", "sweep.md")
CHECKPOINTS = ("checkpoints/last.pt", "checkpoints/best.pt")  # the newest first
State = dict[str, int]  # of the files that make a directory a run: when each was written, in nanoseconds


def state(directory: Path) -> State:
    """Returns when each file of a run in `directory` was written. Two equal states mean that no process wrote in between."""
    files = {name: directory / name for name in (*RUN, *CHECKPOINTS)}
    return {name: file.stat().st_mtime_ns for name, file in files.items() if file.exists()}


def holds_run(directory: Path) -> bool:
    return any((directory / name).exists() for name in RUN)


def holds_sweep(directory: Path) -> bool:
    """Whether it is a sweep's directory, or the one of a report of several places, which looks the same."""
    return any((directory / name).exists() for name in SWEEP)


def has_checkpoint(directory: Path) -> bool:
    return any((directory / name).is_file() for name in CHECKPOINTS)


def check_free_for_run(directory: Path) -> None:
    """A new run must not write over another one, or over a sweep.

    Raises:
        UserError: it would, or it could not write there.
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
    """A new sweep must not write over another one, or over runs; its table is made of all runs below its directory.

    Raises:
        UserError: it would, or it could not write there.
    """
    check_writable(directory, "hydra.sweep.dir")
    check_no_run(directory)
    if holds_sweep(directory) or any(runs.find([directory])):
        raise UserError(
            f"hydra.sweep.dir={directory}: a sweep is there already, or runs are\n"
            f"allowed: sweep.resume={directory} to go on with it, sweep.resume=auto to begin or to go on, or another folder"
        )


def check_no_run(directory: Path) -> None:
    """A sweep is not to lie in the directory of a run.

    Raises:
        UserError: it would.
    """
    if holds_run(directory):
        raise UserError(
            f"hydra.sweep.dir={directory}: a run is there already ({_status(directory)}), and no sweep\nallowed: another folder"
        )


def check_no_other_run(directory: Path) -> None:
    """Results are not to lie in the directory of a run that they are not of.

    Raises:
        UserError: they would.
    """
    if holds_run(directory):
        raise UserError(f"hydra.run.dir={directory}: another run is there ({_status(directory)})\nallowed: another folder")


def check_same(given: Path, resumed: Path, key: str, resume: str) -> None:
    """Where a run or sweep goes on is where it lies: the setting `key` may not lead elsewhere.

    Raises:
        UserError: it does.
    """
    if given.resolve() != resumed.resolve():
        raise UserError(f"{key}={given}: {resume}={resumed} goes on where it lies\nallowed: {resume}={resumed} without {key}")


def _status(directory: Path) -> str:
    record = runs.read(directory)
    return record.status if record else "unfinished"
