"""`task=evaluate`: computes the test accuracy of a trained network, in floats and on bits."""

from pathlib import Path

from rich.table import Table

from bnn_exp.commands.export import line_to_export
from bnn_exp.commands.task import Task, joined
from bnn_exp.config import plugins
from bnn_exp.data import sources
from bnn_exp.data.sources import Arrays
from bnn_exp.deploy import evaluate as evaluation
from bnn_exp.errors import TooLow, UserError, WrongResult
from bnn_exp.records import evaluations, html
from bnn_exp.records.files import writable, write_json
from bnn_exp.records.report import by_class
from bnn_exp.records.runs import MODEL_FILES, run_of
from bnn_exp.records.terminal import console
from bnn_exp.training import plan

NOT_SAVED = "not saved"


def evaluate(task: Task) -> str:
    """Evaluates the network on the test rows of its run's dataset, or of the dataset that the user names.

    Returns the message of the task's end.

    Raises:
        UserError: the network or the dataset can't be read.
        WrongResult: the summary of the run names another accuracy for these test rows.
        TooLow: the accuracy is below `min_accuracy`.
    """
    model, dataset = task.model, task.dataset
    run = run_of(model)
    into = task.into_run_or(run, model)
    device = plan.packed_device(task.composed.device)
    result, arrays = evaluation.evaluate(model, sources.read(dataset.name, **plan.place(dataset)), dataset, device)
    _print(result)
    for text in plugins.changed(task.composed.get("plugins"), run):
        console().print(f"warning: {text}")
    message = _save(result, into, run, arrays)
    if wrong := evaluations.disagreement(vars(result), run):
        raise WrongResult(f"{wrong}\n{message}")
    if shortfall := task.gate.shortfall(result.accuracy_float):
        raise TooLow(f"{message}\n{shortfall}")
    exportable = result.accuracy_packed is not None and not message.startswith(NOT_SAVED)
    return joined(message, line_to_export(task) if exportable else "")


def _print(result: evaluation.Evaluation) -> None:
    console().print(by_class(result.confusion, result.classes))
    data = result.data
    whose = {True: "the run's own", False: "not the run's own: ", None: ""}[data["own"]]
    whose += "" if data["own"] else data["path"] or data["name"]
    which = result.model["which"]
    network = f"the {which} network" if which in MODEL_FILES else f"the network of {which}"
    table = Table(title=f"{result.rows:,} test rows, {whose}; {network}", title_justify="left")
    for column in ("network", "test %", "different predictions", "seconds"):
        table.add_column(column)
    table.add_row("float", f"{result.accuracy_float:.2f}", "", f"{result.seconds_float:.3g}")
    if result.accuracy_packed is None:
        table.add_row("packed", "—", result.packed, "")
    else:
        different = str(result.different_predictions)
        table.add_row("packed", f"{result.accuracy_packed:.2f}", different, f"{result.seconds_packed:.3g}")
    console().print(table)


def _save(result: evaluation.Evaluation, into: Path, run: Path, arrays: Arrays) -> str:
    """Writes the files of an evaluation. Renews report.html of the run if the files go to the run's directory.

    Args:
        into: the directory for the files.
        run: the directory of the run that trained the network.
        arrays: the images of the test rows.

    Returns:
        A line with the names of the files, or with the reason why they can't be written: the console already shows the result.
    """
    file = evaluations.file_for(into, result.model, result.data, run)
    try:
        with writable(into):
            write_json(file, vars(result))
            evaluation.draw_mistakes(evaluations.picture_of(file), result, arrays)
            if into == run and (run / "report.html").is_file():
                html.write_run_page(run)
    except UserError as error:
        return f"{NOT_SAVED}: {error}"
    mistakes = f", {evaluations.picture_of(file).name}" if result.mistakes else ""
    return f"in {file.parent}: {file.name}{mistakes}"
