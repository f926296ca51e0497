"""Tasks of `bnn-train`: to train, which Hydra runs as a job, and others, which are done at once. Imports no torch."""

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.types import TaskFunction
from omegaconf import DictConfig

from bnn_exp.commands import sweep
from bnn_exp.commands.min_accuracy import Gate
from bnn_exp.config import command_line, plugins, unread
from bnn_exp.config.settings import Report, Request, load_request, load_settings
from bnn_exp.errors import FULL, NotWritten, TooLow, UserError
from bnn_exp.records import directories, runs, summary
from bnn_exp.records.files import check_writable, existing, writable
from bnn_exp.records.sweeps.results import FILES, write_results
from bnn_exp.training import engine
from bnn_exp.training.distributed import torchrun_size
from bnn_exp.training.plan import Plan, make_plan
from bnn_exp.training.resume import AUTO, asked_of_run, plan_to_go_on_or_begin, plan_to_resume

TASKS = {
    "report": "bnn_exp.commands.tasks:report",
    "evaluate": "bnn_exp.commands.deployed:evaluate",
    "predict": "bnn_exp.commands.deployed:predict",
    "export": "bnn_exp.commands.deployed:export",
    "benchmark": "bnn_exp.commands.tasks:benchmark",
}
BENCHMARKS = {"inference": "bnn_exp.commands.deployed:benchmark", "training": "bnn_exp.commands.benchmark.command:benchmark"}


@dataclass(frozen=True)
class Asked:
    """Arguments of a task: the request, the composed configuration, the command line, and a directory that it may make;
    `chosen` tells that the user named this directory, `flags` are those of the command line (see `said.flags`)."""

    request: Request
    composed: DictConfig
    overrides: list[str]
    directory: Path
    chosen: bool = False
    flags: Sequence[str] = ()

    def into(self, usual: Path) -> Path:
        """The directory for the results: the one that the user named, else the `usual` one."""
        return self.directory if self.chosen else usual

    @property
    def places(self) -> list[Path]:
        """The places that `from` names.

        Raises:
            UserError: nothing.
        """
        given = self.request.from_
        if not given:
            raise UserError(f"task={self.request.task} needs from=\nallowed: directories of runs or sweeps")
        return [Path(given)] if isinstance(given, str) else [Path(place) for place in given]

    @property
    def model(self) -> Path:
        """The file of the one model that `from` and `which` name.

        Raises:
            UserError: none, or several.
        """
        first, *others = self.places
        if others:
            several = ",".join(map(str, self.places))
            raise UserError(f"from={several}: task={self.request.task} takes one\nallowed: a run or its model.safetensors")
        return runs.model_file(first, self.request.which)


def prepare(
    composed: DictConfig, overrides: list[str], directory: str, chosen: bool = False, flags: Sequence[str] = ()
) -> Plan | str:
    """The plan of the run that is asked for, or, where it is nothing to train, do it and return what there is to say.
    `directory` is where the results go; `chosen` and `flags` are as in `Asked`.

    Raises:
        UserError: what is wrong with it.
        TooLow, WrongResult: it is done, and what came out is not good.
    """
    request = load_request(composed)
    plugins.check_loaded(composed.get("plugins"))
    unread.check_command(request, overrides)
    if request.task != "train":
        engine.let_waiting_threads_sleep(str(composed.device))
        return pkgutil.resolve_name(TASKS[request.task])(Asked(request, composed, overrides, Path(directory), chosen, flags))
    planned = _plan(composed, overrides, directory)
    if planned.finished and (shortfall := gate_of(request).of_run(summary.read(Path(directory)))):
        raise TooLow(f"{planned.finished}\n{shortfall}")
    return planned.finished or planned


def gate_of(request: Request) -> Gate:
    """Returns the accuracy that is asked for."""
    return Gate(request.min_accuracy, request.which)


def _plan(composed: DictConfig, overrides: list[str], directory: str) -> Plan:
    """The plan of a run that begins in `directory` or goes on there, as `resume` asks for."""
    where, found = Path(directory), directories.state(Path(directory))
    if composed.resume == AUTO:
        if not directory:
            raise UserError("resume=auto: nothing says where the run lies\nallowed: hydra.run.dir=FOLDER beside it")
        plan = plan_to_go_on_or_begin(composed, asked_of_run(overrides), where)
    elif composed.resume:
        plan = plan_to_resume(composed, overrides, where)
    else:
        directories.check_free_for_run(where)
        plan = make_plan(composed, overrides)
    return replace(plan, found=found)


def prepare_sweep(
    composed: DictConfig, overrides: list[str], directory: str, swept: Mapping[str, str] | None = None
) -> tuple[Report, Gate]:
    """Checks what a sweep needs before its first job. Returns how its report is wanted, and the accuracy that is asked for.

    Args:
        swept: what an experiment sweeps over, by keys.

    Raises:
        UserError: what is wrong with it.
    """
    request = load_request(composed)
    if request.task != "train":
        raise UserError(f"task={request.task}: can't be swept over\nallowed: bnn-train task={request.task}, without -m")
    if torchrun_size() > 1:
        raise UserError(
            "-m under torchrun: its processes are for one run, not for a sweep\n"
            "allowed: bnn-train -m … engine.devices=N without torchrun, or torchrun without -m"
        )
    if composed.get("resume") not in (None, AUTO):
        raise UserError(
            f"resume={composed.resume}: can't be swept over\nallowed: bnn-train resume=RUN, without -m; or sweep.resume=SWEEP"
        )
    unread.check_command(request, overrides, sweep=True)
    in_experiment = {key: value for key, value in (swept or {}).items() if key in ("config", "from", "init_from")}
    unread.check_named({"init_from": composed.get("init_from")} | in_experiment, overrides)
    _check_sweep(composed.get("resume") or request.sweep.resume, directory)
    if len(command_line.values(overrides, "min_accuracy")) > 1:
        raise UserError("min_accuracy: one for all runs of a sweep\nallowed: min_accuracy=N")
    return request.report, gate_of(request)


def _check_sweep(resumed: str | None, directory: str) -> None:
    """Where the sweep is to lie nothing may be written over, and a sweep that is `resumed` must be there."""
    where = Path(directory)
    if resumed == AUTO:
        if not directory:
            raise UserError("sweep.resume=auto: nothing says where the sweep lies\nallowed: hydra.sweep.dir=FOLDER beside it")
        directories.check_no_run(where)
    elif resumed:
        if not any(runs.find([Path(resumed)])):
            raise UserError(f"sweep.resume={resumed}: no sweep there\nallowed: a sweep's directory, outputs/DATE/TIME-sweep-…")
        directories.check_same(where, Path(resumed), "hydra.sweep.dir", "sweep.resume")
    else:
        directories.check_free_for_sweep(where)


def search(composed: DictConfig, job: TaskFunction) -> None:
    """Run trials of `job` as Optuna asks for them.

    Raises:
        UserError: Optuna is not installed, or there is nothing to search.
        NotWritten: the disk is full.
    """
    try:
        from bnn_exp.commands.search import search
    except ImportError as error:
        raise UserError(f"sweep.search=optuna: {error}\nallowed: after pip install 'bnn-exp[optuna]'") from error
    try:
        search(composed, job)
    except (NotWritten, OSError) as error:
        if isinstance(error, OSError) and error.errno not in FULL:
            raise
        reason = f"{composed.hydra.sweep.dir}: can't be written ({error.strerror})" if isinstance(error, OSError) else error
        raise NotWritten(f"{reason}\nallowed: hydra.sweep.dir=FOLDER where there is room") from error


def benchmark(asked: Asked) -> str:
    """`task=benchmark`: of a trained network, or of training."""
    settings = load_settings(asked.composed)
    unread.check_training(settings, asked.overrides)
    if not asked.request.from_:
        directories.check_no_other_run(asked.directory)
        check_writable(asked.directory, "hydra.run.dir")  # before minutes of work
    return pkgutil.resolve_name(BENCHMARKS[asked.request.benchmark.name])(asked)


def report(asked: Asked) -> str:
    """`task=report`: the answer of the runs in `from`.

    A sweep has its own report in its directory, and a folder of runs the one that is made when nothing is said; any other
    report, of other axes or of several places, goes to a directory of its own.

    Raises:
        UserError: no run there, or a directory that holds the report of a sweep already.
    """
    sources = asked.places
    found = list(runs.find(sources))
    if not found:
        raise UserError(f"from={','.join(map(str, sources))}: no run there\nallowed: directories of runs or sweeps")
    wanted = asked.request.report
    asked_for = wanted != Report(x=None, y=None, group=None)
    own = sweep.own_report(sources[0]) if len(sources) == 1 else None
    if not asked_for:
        wanted = own or wanted
    usual = sources[0] if len(sources) == 1 and (wanted == own or not asked_for) else asked.directory
    into = asked.into(usual)
    _check_report_into(into, sources[0] if len(sources) == 1 else None, wanted)
    anew = "; the report that was there is replaced" if directories.holds_sweep(into) and not sweep.own_report(into) else ""
    with writable(into):
        write_results(found, into, wanted.y, wanted.x, wanted.group)
    return f"in {into}: {', '.join(existing(into, FILES))}{anew}"


def _check_report_into(into: Path, source: Path | None, wanted: Report) -> None:
    """Refuses the directory of a run or of a sweep for a report of other runs, or on other axes than the sweep's own.

    Args:
        source: the only place that the report is of; None where it is of several.
    """
    if source is not None and into.resolve() == source.resolve():
        problem = "" if sweep.own_report(into) in (None, wanted) else "it holds the report of its own sweep"
    elif directories.holds_run(into):
        problem = "a run is there, which has a page of its own"
    else:
        problem = "it holds the report of its own sweep" if sweep.own_report(into) else ""
    if problem:
        raise UserError(f"hydra.run.dir={into}: {problem}\nallowed: another folder")
