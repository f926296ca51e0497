"""The jobs of a sweep: where each one runs, and which of them are done already. Imports no torch."""

import itertools
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bnn_exp.config import plugins
from bnn_exp.errors import UserError
from bnn_exp.records import html, places, runs, summary
from bnn_exp.records.extras import attempt
from bnn_exp.records.log import log, logging_to
from bnn_exp.records.runs import Record
from bnn_exp.training.plan import Plan, make_plan, values_of
from bnn_exp.training.resume import can_go_on, difference, plan_to_go_on

PER_RUN = ("resume", "device", "plugins")  # may differ from one start of a sweep to the next


def plan_in(directory: Path, composed: DictConfig, overrides: list[str], resumed: Path | None) -> tuple[Plan, Path]:
    """The plan of a job that Hydra wants in `directory`, and where it is to run.

    A job whose run is in `directory` goes on with it: a queue has started the job again. In a sweep that is `resumed` the run
    may be anywhere in the sweep, and a job that is new there gets a directory of its own. A plan that can't be leaves its
    reason there.

    Raises:
        UserError: what is wrong with the configuration, or the run of another one is in `directory`.
    """
    earlier, given = _earlier([directory, *([resumed] if resumed else [])], composed, overrides), directory
    if earlier:
        directory = earlier.directory
    elif resumed:
        directory = _free(directory)
    elif places.holds_run(directory):
        raise UserError(
            f"{directory}: the run of another job is there\n"
            "allowed: a hydra.sweep.subdir that differs from job to job, such as ${hydra.job.num}"
        )
    if directory != given and not any(given.iterdir()):
        given.rmdir()
    found = places.state(directory)
    try:
        if earlier and earlier.config and can_go_on(directory):
            values = earlier.config | {"plugins": plugins.entries(composed.get("plugins"))}  # which may have moved
            plan = plan_to_go_on(directory, values, overrides)
        else:
            plan = make_plan(composed, overrides)
    except UserError as error:
        if not can_go_on(directory):  # else what is there says more
            summary.write(directory, "failed", error=str(error), overrides=overrides)
            with logging_to(directory / "train.log"):
                log.error("failed: %s", error)
                attempt("report.html", html.write_run_page, directory)
        raise
    return replace(plan, found=found), directory


def _earlier(where: list[Path], composed: DictConfig, overrides: list[str]) -> Record | None:
    """The run of this configuration; one that could not begin is known by what was asked for.

    Where the data of the sweep have been moved, its configuration names the folder where they lie now.
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
        return asked is not None and difference(there, asked, PER_RUN) is None
    except UserError:  # one of them is no configuration
        return False


def with_moved_data(there: dict, asked: dict) -> dict:
    """The configuration of a run whose folder of data has gone, with the folder that is asked for."""
    path, moved = (values["dataset"].get("path") for values in (there, asked))
    if not path or not moved or Path(path).exists():
        return there
    return there | {"dataset": there["dataset"] | {"path": moved}}


def _free(directory: Path) -> Path:
    """`directory`, or the first number after it, that no run has yet: made now, so that no other job takes it."""
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
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
