"""`task=predict`: computes the classes and probabilities of the images in `input`."""

from rich.table import Table

from bnn_exp.commands.task import Task, joined
from bnn_exp.deploy import predict as prediction
from bnn_exp.deploy.predict import FILES
from bnn_exp.errors import UserError
from bnn_exp.records.files import writable
from bnn_exp.records.terminal import console
from bnn_exp.training import plan

SHOWN, LAST = 40, 10  # the console shows 40 images at most: the first 30 and the last 10


def predict(task: Task) -> str:
    """Classifies the images of `input`, prints the predicted classes and writes them to files.

    Returns the message of the task's end.

    Raises:
        UserError: `input` is missing, the directory holds answers already, or no image can be read.
    """
    given = task.request.input
    if not given:
        raise UserError("task=predict needs input=\nallowed: an image, a folder of images, a pattern, or a list of them")
    model = task.model
    into = task.into_run_or(task.directory, model)
    if there := [name for name in FILES if (into / name).exists()]:
        raise UserError(f"{into / there[0]}: the file exists already\nallowed: another hydra.run.dir=FOLDER")
    centre = task.request.predict.centre
    images = [given] if isinstance(given, str) else given
    found = prediction.predict(model, images, plan.packed_device(task.composed.device), centre)
    _print(found)
    with writable(into):
        found.write(into)
    count, others = len(found.answers), found.passed_over
    return joined(
        f"{count:,} image{'s' * (count != 1)} in {into}: {', '.join(FILES)}",
        f"{len(found.skipped):,} not readable, the first: {found.skipped[0][1]}" if found.skipped else "",
        f"{others:,} other file{'s' * (others != 1)} passed over" if others else "",
        prediction.TOGETHER if found.together else "",
        _looks_inverted(found),
        task.next("evaluate", "how often it is right"),
    )


def _looks_inverted(found: prediction.Predictions) -> str:
    """Returns a line for the user if the ground of an image is light and that of the training images dark, or the reverse."""
    if not found.inverted:
        return ""
    return (
        f"{found.inverted:,} of {len(found.answers):,} seem inverted: light and dark exchanged. "
        "predict.centre=true inverts pictures of digits and centres them like MNIST's"
    )


def _print(found: prediction.Predictions) -> None:
    table = Table("image", "class", "probability", "then", *([] if found.centred is None else ["made like MNIST"]))
    answers = found.answers
    for i, (file, (first, *others)) in enumerate(answers):
        if len(answers) > SHOWN and SHOWN - LAST <= i < len(answers) - LAST:
            if i == SHOWN - LAST:
                table.add_row(f"… {len(answers) - SHOWN:,} more …")
            continue
        then = ", ".join(f"{name} {100 * p:.1f}%" for name, p in others)
        table.add_row(str(file), first[0], f"{100 * first[1]:.1f}%", then, *found.remark(file))
    console().print(table)
