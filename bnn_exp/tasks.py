"""What `bnn-train` can be asked to do: to train, which Hydra runs as a job, or what is done at once. Imports no torch."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from bnn_exp import config, plan
from bnn_exp.config import Request
from bnn_exp.distributed import torchrun_size
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
        return TASKS[request.task](request, composed, overrides, Path(directory))
    if request.sweep.resume:
        raise UserError(f"sweep.resume={request.sweep.resume}: needs -m, with the settings of that sweep")
    planned = make_plan(composed, overrides)
    return planned.finished or planned


def prepare_sweep(composed: DictConfig) -> None:
    """Check what a sweep needs before its first job.

    Raises:
        UserError: what is wrong with it.
    """
    request = config.load_request(composed)
    if request.task != "train":
        raise UserError(f"task={request.task}: can't be swept over\nallowed: bnn-train task={request.task}, without -m")
    if torchrun_size() > 1:
        raise UserError(
            "-m under torchrun: its processes are for one run, not for a sweep\n"
            "allowed: bnn-train -m … trainer.devices=N without torchrun, or torchrun without -m"
        )
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


def report(request: Request, _composed: DictConfig, _overrides: list[str], directory: Path) -> str:
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


def evaluate(request: Request, composed: DictConfig, overrides: list[str], _directory: Path) -> str:
    """`task=evaluate`: test rows of the dataset that is named, else of the run's own, by its network as floats and on bits."""
    model = _model(request)
    from bnn_exp.deploy.evaluate import evaluate
    from bnn_exp.records.model import read_model
    from bnn_exp.records.report import by_class

    if any(item.startswith("dataset") for item in overrides):
        dataset = config.load(composed).dataset
    else:
        dataset = config.dataset(read_model(model)[2]["config"]["dataset"])
    result = evaluate(model, plan.read(dataset))
    console = Console(highlight=False, soft_wrap=True)
    console.print(by_class(result.confusion, result.classes))
    table = Table(
        "network", *("test %", "different predictions", "seconds"), title=f"{result.rows:,} test rows", title_justify="left"
    )
    table.add_row("float", f"{result.accuracy_float:.2f}", "", f"{result.seconds_float:.3g}")
    if result.accuracy_packed is None:
        table.add_row("packed", "—", result.packed, "")
    else:
        different = str(result.different_predictions)
        table.add_row("packed", f"{result.accuracy_packed:.2f}", different, f"{result.seconds_packed:.3g}")
    console.print(table)
    return f"in {model if model.is_dir() else model.parent}: evaluation.json, mistakes.png"


def predict(request: Request, _composed: DictConfig, _overrides: list[str], _directory: Path) -> str:
    """`task=predict`: classes and probabilities of the images of `input`."""
    model = _model(request)
    if not request.input:
        raise UserError("task=predict needs input=\nallowed: an image, or a folder of them")
    from bnn_exp.deploy.evaluate import predict

    answers = predict(model, Path(request.input))
    table = Table("image", "class", "probability", "then")
    for file, (first, *others) in answers:
        table.add_row(file.name, first[0], f"{100 * first[1]:.1f}%", ", ".join(f"{c} {100 * p:.1f}%" for c, p in others))
    Console(highlight=False, soft_wrap=True).print(table)
    return f"{len(answers)} images"


def _model(request: Request) -> Path:
    """The one model of `from`."""
    places = _places(request)
    if len(places) > 1:
        raise UserError(f"from={','.join(places)}: task={request.task} takes one\nallowed: a run or its model.safetensors")
    return Path(places[0])


TASKS = {"report": report, "evaluate": evaluate, "predict": predict}
