"""What `bnn-train` can be asked to do: to train, which Hydra runs as a job, or what is done at once. Imports no torch."""

from pathlib import Path

from omegaconf import DictConfig

from bnn_exp import config
from bnn_exp.config import Request
from bnn_exp.errors import UserError
from bnn_exp.plan import Plan, make_plan
from bnn_exp.records import runs
from bnn_exp.records.answer import FILES, answer


def prepare(composed: DictConfig, overrides: list[str], directory: str) -> Plan | str:
    """The plan of the run that is asked for, or, where it is nothing to train, do it and return what there is to say.

    Raises:
        UserError: what is wrong with it.
    """
    request = config.load_request(composed)
    if request.task != "train":
        return TASKS[request.task](request, Path(directory))
    if request.sweep.resume:
        raise UserError(f"sweep.resume={request.sweep.resume}: needs -m, with the settings of that sweep")
    plan = make_plan(composed, overrides)
    return plan.finished or plan


def prepare_sweep(composed: DictConfig) -> None:
    """Check what a sweep needs before its first job.

    Raises:
        UserError: what is wrong with it.
    """
    request = config.load_request(composed)
    if request.task != "train":
        raise UserError(f"task={request.task}: can't be swept over\nallowed: bnn-train task={request.task}, without -m")
    if composed.get("resume"):
        raise UserError(
            f"resume={composed.resume}: can't be swept over\nallowed: bnn-train resume=RUN, without -m; or sweep.resume=SWEEP"
        )
    resumed = request.sweep.resume
    if resumed and not any(runs.find([Path(resumed)])):
        raise UserError(f"sweep.resume={resumed}: no sweep there\nallowed: a sweep's directory, outputs/DATE/TIME-sweep-…")


def search(composed: DictConfig, job) -> None:
    """Run trials of `job` as Optuna asks for them.

    Raises:
        UserError: Optuna is not installed, or there is nothing to search.
    """
    try:
        from bnn_exp.search import search
    except ImportError as error:
        raise UserError(f"sweep.search=optuna: {error}\nallowed: after pip install 'bnn-exp[optuna]'") from error
    search(composed, job)


def report(request: Request, directory: Path) -> str:
    """`task=report`: the answer of the runs in `from`, left there, or in `directory` if there are several places."""
    places = [Path(place) for place in _places(request)]
    found = list(runs.find(places))
    if not found:
        raise UserError(f"from={','.join(map(str, places))}: no run there\nallowed: directories of runs or sweeps")
    into = places[0] if len(places) == 1 else directory
    answer(found, into, request.report.y, request.report.x, request.report.group)
    return f"in {into}: {', '.join(FILES)}"


def _places(request: Request) -> tuple[str, ...]:
    if not request.from_:
        raise UserError(f"task={request.task} needs from=\nallowed: directories of runs or sweeps")
    return (request.from_,) if isinstance(request.from_, str) else request.from_


TASKS = {"report": report}
