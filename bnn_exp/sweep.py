"""A sweep: where its jobs run, what of them is done already, and the answer at its end. Imports no torch."""

import itertools
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bnn_exp import config
from bnn_exp.config import Report
from bnn_exp.errors import UserError
from bnn_exp.plan import Plan, make_plan, plan_to_go_on, values_of
from bnn_exp.records import html, runs, summary
from bnn_exp.records.answer import FILES, answer
from bnn_exp.records.log import log, logging_to
from bnn_exp.records.runs import Record
from bnn_exp.records.words import console

PER_RUN = ("resume", "device")  # may differ from one start of a sweep to the next
SAID_TWICE = ("delta",)  # stands in optimizer.delta, which is compared


def plan_in(directory: Path, composed: DictConfig, overrides: list[str], resumed: Path | None) -> tuple[Plan, Path]:
    """The plan of a job that Hydra wants in `directory`, and where it is to run.

    In a sweep that is resumed a job goes on with the run of its configuration, wherever in the sweep it is, and one that is
    new there gets a directory of its own. A plan that can't be leaves its reason there.

    Raises:
        UserError: what is wrong with the configuration.
    """
    earlier = None
    if resumed is not None:
        earlier, given = _earlier([directory, resumed], composed, overrides), directory
        directory = earlier.directory if earlier else _free(directory)
        if directory != given and not any(given.iterdir()):
            given.rmdir()
    try:
        if earlier and earlier.config and (earlier.directory / "checkpoints" / "last.pt").is_file():
            return plan_to_go_on(directory, earlier.config, overrides), directory
        return make_plan(composed, overrides), directory
    except UserError as error:
        summary.write(directory, "failed", error=str(error), overrides=overrides)
        with logging_to(directory / "train.log"):
            log.error("failed: %s", error)
        html.write_run_page(directory)
        raise


def _earlier(places: list[Path], composed: DictConfig, overrides: list[str]) -> Record | None:
    """The run of this configuration in `places`; one that could not begin is known by what was asked for."""
    try:
        wanted = _without(values_of(composed))
    except UserError:
        wanted = None
    for run in runs.find(places):
        if _without(run.config) == wanted if run.config else run.summary.get("overrides") == overrides:
            return run
    return None


def _without(values: dict) -> dict:
    """The settings that tell runs apart, those that an earlier version did not have filled in."""
    with suppress(UserError):  # of a version with other settings
        values = asdict(config.load(values))
    return {key: value for key, value in values.items() if key not in (*PER_RUN, *SAID_TWICE)}


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


def conclude(directory: Path, report: Report) -> bool | None:
    """Leave the answer of the sweep in `directory`, as `report` says, and print it.

    Returns whether all its runs completed; None where there is none, since nothing could begin: then the directory goes too.
    """
    found = list(runs.find([directory]))
    if not found:
        (directory / "multirun.yaml").unlink(missing_ok=True)
        if not any(directory.iterdir()):
            directory.rmdir()
        return None
    result = answer(found, directory, report.y, report.x, report.group)
    console().print(f"in {directory}: {', '.join(FILES)}")
    return not result.unfinished


def own_report(directory: Path) -> Report | None:
    """How the sweep in `directory` reports on itself; None where there is no sweep."""
    try:
        saved = OmegaConf.load(directory / "multirun.yaml")
        report = Report(**OmegaConf.to_container(saved.report))
        said = any(item.startswith("report.y=") for item in saved.hydra.overrides.task)
    except Exception:  # no such file, a damaged one, or a foreign one: YAML's and OmegaConf's errors have no common base
        return None
    earlier = report.y == "test_accuracy" and not said  # the default of an earlier version
    return replace(report, y=None) if earlier else report
