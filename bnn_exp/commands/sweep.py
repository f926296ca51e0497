"""Checks a sweep before its first job, starts its search, and writes its results at the end. Imports no torch."""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from bnn_exp.commands.command import Command
from bnn_exp.commands.min_accuracy import Gate
from bnn_exp.commands.sweep_jobs import without_hydra
from bnn_exp.config import command_line, unread
from bnn_exp.config.settings import Report, Request, load_request
from bnn_exp.errors import FAILED, FULL, INTERRUPTED, TOO_LOW, NotWritten, UserError
from bnn_exp.records import directories, next_command, runs
from bnn_exp.records.files import existing
from bnn_exp.records.sweep_results import FILES, write_results
from bnn_exp.records.terminal import console
from bnn_exp.training.resume import AUTO
from bnn_exp.training.torchrun import torchrun_size

UNREADABLE = Exception  # a missing, damaged or foreign multirun.yaml: YAML and OmegaConf have no common exception class


@dataclass(frozen=True)
class Sweep:
    """A sweep: the directory, the axes of the report, and the accuracy that the runs must reach."""

    directory: Path
    report: Report
    gate: Gate


def prepare(config: DictConfig) -> Sweep:
    """Checks a sweep before its first job, and returns its directory, axes and required accuracy.

    Raises:
        UserError: the input is wrong, or the directory of the sweep holds something else.
    """
    composed, overrides = without_hydra(config), list(config.hydra.overrides.task)
    request, directory = load_request(composed), config.hydra.sweep.dir
    _check_command(request, composed.get("resume"))
    unread.check_command(request, overrides, sweep=True)
    swept = config.hydra.sweeper.get("params") or {}  # the keys that an experiment file sweeps over, with their values
    in_experiment = {key: value for key, value in swept.items() if key in ("config", "from", "init_from")}
    unread.check_named({"init_from": composed.get("init_from")} | in_experiment, overrides)
    _check_directory(composed.get("resume") or request.sweep.resume, directory)
    if len(command_line.values(overrides, "min_accuracy")) > 1:
        raise UserError("min_accuracy: all runs of a sweep share one value\nallowed: min_accuracy=N")
    return Sweep(Path(directory).absolute(), request.report, Gate(request.min_accuracy, request.which))


def _check_command(request: Request, resume: str | None) -> None:
    if request.task != "train":
        raise UserError(f"task={request.task}: can't be swept over\nallowed: bnn-train task={request.task}, without -m")
    if torchrun_size() > 1:
        raise UserError(
            "-m under torchrun: the processes of torchrun belong to one run, not to a sweep\n"
            "allowed: bnn-train -m … engine.devices=N without torchrun, or torchrun without -m"
        )
    if resume not in (None, AUTO):
        raise UserError(
            f"resume={resume}: can't be swept over\nallowed: bnn-train resume=RUN, without -m; or sweep.resume=SWEEP"
        )


def _check_directory(resumed: str | None, directory: str) -> None:
    """Raises UserError if a new sweep would overwrite files in `directory`, or if there is no sweep to resume.

    `resumed` is the directory of the sweep to resume, or `auto`; None for a new sweep.
    """
    where = Path(directory)
    if resumed == AUTO:
        if not directory:
            raise UserError(
                "sweep.resume=auto: the directory of the sweep is missing\nallowed: hydra.sweep.dir=FOLDER beside it"
            )
        directories.check_no_run(where)
    elif resumed:
        if not any(runs.find([Path(resumed)])):
            raise UserError(f"sweep.resume={resumed}: no sweep there\nallowed: a sweep's directory, outputs/DATE/TIME-sweep-…")
        directories.check_same(where, Path(resumed), "hydra.sweep.dir", "sweep.resume")
    else:
        directories.check_free_for_sweep(where)


def search(config: DictConfig) -> None:
    """Runs the trials of a search. Optuna chooses the settings of each trial.

    Raises:
        UserError: Optuna is not installed, or there is nothing to search.
        NotWritten: the disk is full.
    """
    try:
        from bnn_exp.commands.search import search
    except ImportError as error:
        raise UserError(f"sweep.search=optuna: {error}\nallowed: after pip install 'bnn-exp[optuna]'") from error
    from bnn_exp.commands.job import job

    try:
        search(config, job)
    except (NotWritten, OSError) as error:
        if isinstance(error, OSError) and error.errno not in FULL:
            raise
        reason = f"{config.hydra.sweep.dir}: can't be written ({error.strerror})" if isinstance(error, OSError) else error
        raise NotWritten(f"{reason}\nallowed: hydra.sweep.dir=FOLDER where there is room") from error


def conclude(now: Command) -> None:
    """Writes and prints the results of the command's sweep. Replaces the exit codes of the jobs by one for the sweep.

    The exit code of the sweep is 130 if a signal ended the sweep, else 1 if a run did not complete or a job failed, else 3 if a
    run is below `min_accuracy`. The summaries of the runs say which runs completed: jobs may run in other processes.
    """
    sweep = now.sweep
    cut = INTERRUPTED in now.codes
    try:
        completed = _answer(sweep, cut)
    except UserError as error:
        now.fail_with(error)
    except NotWritten as error:
        now.fail_with(error, f"next: bnn-train task=report from={sweep.directory}, when there is room")
    else:
        if completed is not None:
            failed = not completed or {*now.codes} - {TOO_LOW}
            low = _below(sweep)
            if low:
                now.say(low)
            now.codes[:] = [INTERRUPTED] if cut else [FAILED] if failed else [TOO_LOW] if low else []


def _answer(sweep: Sweep, cut: bool) -> bool | None:
    """Writes the results of a sweep into its directory, and prints the names of the files and a command to run next.

    Args:
        cut: True if a signal has ended the sweep.

    Returns:
        True if all runs completed. None if there is no run. An empty directory is then removed.
    """
    directory, report = sweep.directory, sweep.report
    found = list(runs.find([directory]))
    if not found:
        (directory / "multirun.yaml").unlink(missing_ok=True)
        if not any(directory.iterdir()):
            directory.rmdir()
        return None
    missing = max(planned(directory) - len(found), 0) if cut else 0
    result = write_results(found, directory, report.y, report.x, report.group, missing)
    console().print(f"in {directory}: {', '.join(existing(directory, FILES))}")
    if following := next_command.after_sweep(result, directory, sys.argv[1:], cut):
        console().print(following)
    return not result.unfinished


def _below(sweep: Sweep) -> str:
    """Returns a line with the number of runs of a sweep below `min_accuracy`; "" if no run is below."""
    found = list(runs.find([sweep.directory]))
    low = [run for run in found if sweep.gate.of_run(run.summary)]
    return f"{len(low)} of {len(found)} runs are below min_accuracy={sweep.gate.least:g}" if low else ""


def planned(directory: Path) -> int:
    """Returns the number of jobs that the multirun.yaml in `directory` describes; 0 if the file can't be read."""
    try:
        saved = OmegaConf.load(directory / "multirun.yaml")
        if saved.sweep.search == "optuna":
            return saved.sweep.trials
        swept = [f"{key}={value}" for key, value in (saved.hydra.sweeper.get("params") or {}).items()]
        given = OverridesParser.create().parse_overrides([*swept, *saved.hydra.overrides.task])
        values = {o.key_or_group: len(list(o.sweep_string_iterator())) for o in given if o.is_discrete_sweep()}
    except UNREADABLE:
        return 0
    return math.prod(values.values())


def own_report(directory: Path) -> Report | None:
    """Returns the axes of the report that the sweep in `directory` makes itself; None if `directory` holds no sweep."""
    try:
        saved: Any = OmegaConf.load(directory / "multirun.yaml")
        report = Report(**saved.report)
        chosen = any(item.startswith("report.y=") for item in saved.hydra.overrides.task)
    except UNREADABLE:
        return None
    old_default = report.y == "test_accuracy" and not chosen  # an earlier version wrote its default into multirun.yaml
    return replace(report, y=None) if old_default else report
