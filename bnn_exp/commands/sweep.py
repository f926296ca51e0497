"""A sweep: where its jobs run, what of them is done already, and the answer at its end. Imports no torch."""

import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from bnn_exp.commands.min_accuracy import Gate
from bnn_exp.config import plugins
from bnn_exp.config.settings import Report
from bnn_exp.errors import UserError
from bnn_exp.records import directories, html, next_command, runs, summary
from bnn_exp.records.files import existing
from bnn_exp.records.formatting import console
from bnn_exp.records.log import log, logging_to
from bnn_exp.records.optional import attempt
from bnn_exp.records.runs import Record
from bnn_exp.records.sweeps.results import FILES, write_results
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


def conclude(directory: Path, report: Report, cut: bool = False) -> bool | None:
    """Leave the answer of the sweep in `directory`, as `report` says, and print it. `cut` tells that a signal has ended it.

    Returns whether all its runs completed; None where there is none, since nothing could begin: then the directory goes too.
    """
    found = list(runs.find([directory]))
    if not found:
        (directory / "multirun.yaml").unlink(missing_ok=True)
        if not any(directory.iterdir()):
            directory.rmdir()
        return None
    result = write_results(
        found, directory, report.y, report.x, report.group, max(planned(directory) - len(found), 0) if cut else 0
    )
    console().print(f"in {directory}: {', '.join(existing(directory, FILES))}")
    if following := next_command.after_sweep(result, directory, sys.argv[1:], cut):
        console().print(following)
    return not result.unfinished


def planned(directory: Path) -> int:
    """Returns how many jobs the sweep in `directory` was to have, by its multirun.yaml; 0 where this does not say it."""
    try:
        saved = OmegaConf.load(directory / "multirun.yaml")
        if saved.sweep.search == "optuna":
            return saved.sweep.trials
        swept = [f"{key}={value}" for key, value in (saved.hydra.sweeper.get("params") or {}).items()]
        told = OverridesParser.create().parse_overrides([*swept, *saved.hydra.overrides.task])
        values = {o.key_or_group: len(list(o.sweep_string_iterator())) for o in told if o.is_discrete_sweep()}
    except Exception:  # no such file, a damaged one, or a foreign one: YAML's and OmegaConf's errors have no common base
        return 0
    return math.prod(values.values())


def below(directory: Path, gate: Gate) -> str:
    """Returns a line where runs of the sweep in `directory` are below the accuracy that is asked for; else ""."""
    found = list(runs.find([directory]))
    low = [run for run in found if gate.of_run(run.summary)]
    return f"{len(low)} of {len(found)} runs are below min_accuracy={gate.least:g}" if low else ""


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
