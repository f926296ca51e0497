"""The jobs of a sweep: finds the directory of each job, and the jobs that are done already. Imports no torch."""

import itertools
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bnn_exp.config import plugins
from bnn_exp.errors import UserError
from bnn_exp.records import directories, html, runs, summary
from bnn_exp.records.log import log, logging_to
from bnn_exp.records.optional import attempt
from bnn_exp.records.runs import Record
from bnn_exp.training.plan import Plan, make_plan, values_of
from bnn_exp.training.resume import can_go_on, difference, plan_to_go_on

MAY_DIFFER = ("resume", "device", "plugins")  # a sweep may continue with other values of these settings


def plan_in(directory: Path, composed: DictConfig, overrides: list[str], resumed: Path | None) -> tuple[Plan, Path]:
    """Returns the plan of a job, and the directory of its run.

    If a queue starts a job again, the run of the job is already in `directory` and continues. In a resumed sweep the run may
    be in any directory of the sweep, and a new job gets a new directory. If the plan fails, the run's directory gets
    the reason.

    Args:
        directory: the directory that Hydra chose for the job.
        overrides: the overrides of the job.
        resumed: the directory of the sweep if it is resumed, else None.

    Raises:
        UserError: the configuration is wrong, or the run of another configuration is in `directory`.
    """
    earlier, given = _earlier([directory, *([resumed] if resumed else [])], composed, overrides), directory
    if earlier:
        directory = earlier.directory
    elif resumed:
        directory = _free(directory)
    elif directories.holds_run(directory):
        raise UserError(
            f"{directory}: the run of another job is there\n"
            "allowed: a hydra.sweep.subdir that differs from job to job, such as ${hydra.job.num}"
        )
    if directory != given and not any(given.iterdir()):
        given.rmdir()
    found = directories.state(directory)
    try:
        if earlier and earlier.config and can_go_on(directory):
            # The plugin files may have moved since the earlier run.
            values = earlier.config | {"plugins": plugins.entries(composed.get("plugins"))}
            plan = plan_to_go_on(directory, values, overrides)
        else:
            plan = make_plan(composed, overrides)
    except UserError as error:
        if not can_go_on(directory):  # a run that can continue keeps its files, which say more than this error
            summary.write(directory, "failed", error=str(error), overrides=overrides)
            with logging_to(directory / "train.log"):
                log.error("failed: %s", error)
                attempt("report.html", html.write_run_page, directory)
        raise
    return replace(plan, found=found), directory


def _earlier(where: list[Path], composed: DictConfig, overrides: list[str]) -> Record | None:
    """Returns the run in the directories `where` that has the configuration `composed`; None if there is no such run.

    A run that could not begin has no configuration, so its overrides are compared. If the data have been moved since the run,
    the configuration of the result names the new folder of the data.
    """
    try:
        wanted = values_of(composed)
    except UserError:
        wanted = None
    found, moved = list(runs.find(where)), []
    for run in found:
        if _same(run.config, wanted) if run.config else run.summary.get("overrides") == overrides:
            return run
    for run in found:
        if wanted and run.config and _same(config := with_moved_data(run.config, wanted), wanted):
            moved.append(replace(run, config=config))
    return moved[0] if len(moved) == 1 else None


def _same(there: dict, asked: dict | None) -> bool:
    try:
        return asked is not None and difference(there, asked, MAY_DIFFER) is None
    except UserError:  # `there` or `asked` is not a valid configuration
        return False


def with_moved_data(there: dict, asked: dict) -> dict:
    """Returns the configuration `there` with the data folder of `asked`, if the folder in `there` no longer exists."""
    path, moved = (values["dataset"].get("path") for values in (there, asked))
    if not path or not moved or Path(path).exists():
        return there
    return there | {"dataset": there["dataset"] | {"path": moved}}


def _free(directory: Path) -> Path:
    """Returns `directory` if it is empty, else a new directory beside it, named by the next free number.

    This function makes the new directory, so no other job takes its name.
    """
    if not any(directory.iterdir()):
        return directory
    for number in itertools.count(int(directory.name) + 1 if directory.name.isdigit() else 1):
        try:
            (directory.parent / str(number)).mkdir()
        except FileExistsError:
            continue
        return directory.parent / str(number)


def without_hydra(config: DictConfig) -> DictConfig:
    """Returns a composed configuration without Hydra's own settings."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
