"""The tasks of `bnn-train` that begin with a trained network: evaluate, predict, export, benchmark."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import nn

from bnn_exp import models
from bnn_exp.commands.benchmark import inference as measured
from bnn_exp.commands.benchmark.inference_plot import speed_plot
from bnn_exp.commands.tasks import Asked, gate_of
from bnn_exp.config import plugins, unread
from bnn_exp.config.settings import Rows, Settings, load_settings
from bnn_exp.data import sources
from bnn_exp.data.sources import Arrays
from bnn_exp.deploy import evaluate as evaluation
from bnn_exp.deploy import predict as predicted
from bnn_exp.deploy.check import has_a_form
from bnn_exp.deploy.layers import traceable
from bnn_exp.deploy.load import load_deployed
from bnn_exp.deploy.predict import FILES
from bnn_exp.deploy.to_c import export_c
from bnn_exp.deploy.to_onnx import export_onnx
from bnn_exp.deploy.to_torch import export_torch, write_torch
from bnn_exp.errors import TooLow, UserError, WrongResult
from bnn_exp.nn.exact import home
from bnn_exp.records import directories, evaluations, html, next_command
from bnn_exp.records.files import writable, write_json
from bnn_exp.records.formatting import bytes_in_words, console
from bnn_exp.records.model import load_model, save_model
from bnn_exp.records.report import by_class
from bnn_exp.records.runs import MODELS, run_of, which_of
from bnn_exp.training import plan

NOT_SAVED = "not saved"
SHOWN, LAST = 40, 10  # answers on the console, and how many of these are the last ones


def evaluate(asked: Asked) -> str:
    """`task=evaluate`: test rows of the dataset that is named, else of the run's own, by its network as floats and on bits.

    Raises:
        WrongResult: the accuracy is not the one that the run's summary has of these rows.
        TooLow: it is below `min_accuracy`.
    """
    model, dataset = asked.model, _dataset(asked)
    run = run_of(model)
    into = _into(asked, model, run)
    result, arrays = evaluation.evaluate(model, sources.read(dataset.name, **plan.place(dataset)), dataset)
    _say(result)
    for text in plugins.changed(asked.composed.get("plugins"), run):
        console().print(f"warning: {text}")
    said = _leave(result, into, run, arrays)
    if wrong := evaluations.disagreement(vars(result), run):
        raise WrongResult(f"{wrong}\n{said}")
    if shortfall := gate_of(asked.request).shortfall(result.accuracy_float):
        raise TooLow(f"{said}\n{shortfall}")
    able = result.accuracy_packed is not None and not said.startswith(NOT_SAVED)
    return _with_export(said, asked) if able else said


def _say(result: evaluation.Evaluation) -> None:
    """The tables of an evaluation on the console."""
    console().print(by_class(result.confusion, result.classes))
    data = result.data
    whose = {True: "the run's own", False: "not the run's own: ", None: ""}[data["own"]]
    whose += "" if data["own"] else data["path"] or data["name"]
    table = Table(title=f"{result.rows:,} test rows, {whose}; {_whose_network(result.model['which'])}", title_justify="left")
    for column in ("network", "test %", "different predictions", "seconds"):
        table.add_column(column)
    table.add_row("float", f"{result.accuracy_float:.2f}", "", f"{result.seconds_float:.3g}")
    if result.accuracy_packed is None:
        table.add_row("packed", "—", result.packed, "")
    else:
        different = str(result.different_predictions)
        table.add_row("packed", f"{result.accuracy_packed:.2f}", different, f"{result.seconds_packed:.3g}")
    console().print(table)


def _whose_network(which: str) -> str:
    return f"the {which} network" if which in MODELS else f"the network of {which}"


def _leave(result: evaluation.Evaluation, into: Path, run: Path, arrays: Arrays) -> str:
    """Writes the files of an evaluation and the page of the run that they stand in. Returns where they are, or why not: what
    was measured is on the console by then."""
    file = evaluations.file_for(into, result.model, result.data, run)
    try:
        with writable(into):
            write_json(file, vars(result))
            evaluation.draw_mistakes(evaluations.picture_of(file), result, arrays)
            if into == run and (run / "report.html").is_file():
                html.write_run_page(run)
    except UserError as error:
        return f"{NOT_SAVED}: {error}"
    pictures = f", {evaluations.picture_of(file).name}" if result.mistakes else ""
    return f"in {file.parent}: {file.name}{pictures}"


def predict(asked: Asked) -> str:
    """`task=predict`: classes and probabilities of the images of `input`, on the console and in files of their own."""
    given = asked.request.input
    if not given:
        raise UserError("task=predict needs input=\nallowed: an image, a folder of images, a pattern, or a list of them")
    model = asked.model
    into = _into(asked, model, asked.directory)
    if there := [name for name in FILES if (into / name).exists()]:
        raise UserError(f"{into / there[0]}: it is there already\nallowed: another hydra.run.dir=FOLDER")
    found = predicted.predict(model, [given] if isinstance(given, str) else given)
    _show(found)
    with writable(into):
        found.write(into)
    parts = [f"{len(found.answers):,} image{'s' * (len(found.answers) != 1)} in {into}: {', '.join(FILES)}"]
    if found.skipped:
        parts.append(f"{len(found.skipped):,} not readable, the first: {found.skipped[0][1]}")
    if found.passed_over:
        parts.append(f"{found.passed_over:,} other file{'s' * (found.passed_over != 1)} passed over")
    if found.together:
        parts.append(predicted.TOGETHER)
    return _with_next("\n".join(parts), "evaluate", asked, "how often it is right")


def _show(found: predicted.Predictions) -> None:
    """The answers on the console: of many the first and the last."""
    table, answers = Table("image", "class", "probability", "then"), found.answers
    for i, (file, (first, *others)) in enumerate(answers):
        if len(answers) > SHOWN and SHOWN - LAST <= i < len(answers) - LAST:
            if i == SHOWN - LAST:
                table.add_row(f"… {len(answers) - SHOWN:,} more …")
            continue
        then = ", ".join(f"{name} {100 * p:.1f}%" for name, p in others)
        table.add_row(str(file), first[0], f"{100 * first[1]:.1f}%", then)
    console().print(table)


def export(asked: Asked) -> str:
    """`task=export`: the packed network in another form, checked on every test row before it counts as done."""
    wanted = asked.request.export
    model = asked.model
    network, about = load_deployed(model)
    _check_format(wanted.format, network)
    into = Path(wanted.dir) if wanted.dir else _into(asked, model, run_of(model) / _named("export", model))
    images = torch.from_numpy(plan.read(_dataset(asked)).test_images)
    with writable(into, "export.dir=FOLDER where you may write"):
        if wanted.format == "torch":
            known = has_a_form(network)
            facts = export_torch(network, into, images) if known else write_torch(network, traceable(network), into, images)
        else:
            facts = {"c": export_c, "onnx": export_onnx}[wanted.format](network, into, images, tuple(about["classes"]))
    sizes = [
        f"{key.removesuffix('bytes').replace('_', ' ')}{bytes_in_words(value)}"
        for key, value in facts.items()
        if key.endswith("bytes")
    ]
    files = [file.name for file in facts.get("files", [facts.get("file")])]
    said = f"in {into}: {', '.join(files)}; {', '.join(sizes)}; the same predictions for all {len(images):,} test rows"
    return _with_next(said, "benchmark", asked, "its speed")


def _check_format(format: str, network: nn.Module) -> None:
    """Refuses a format that needs a method that a network of another class does not bring."""
    if _has_format(format, network):
        return
    arguments = {"onnx": "graph, pixels", "c": "shape, classes"}[format]
    raise UserError(
        f"export.format={format}: {home(type(network))} has no method {format}()\n"
        f"allowed: export.format=torch, or a method {format}({arguments}) of it (docs/add_a_model.md)"
    )


def _has_format(format: str, network: nn.Module) -> bool:
    """Tells whether a packed network can be exported in a format. The class of a network of one's own may lack the method."""
    return format == "torch" or has_a_form(network) or hasattr(type(network), format)


def benchmark(asked: Asked) -> str:
    """`benchmark=inference`: speed and memory of the packed network beside torch's, one thread when nothing else is said.

    Without `from` the network is that of the configuration, its weights as they begin.
    """
    settings = load_settings(asked.composed)
    device = torch.device(plan.device_of(settings.device))
    file = asked.model if asked.request.from_ else None
    folder, name = (_into(asked, file, run_of(file)), _named("benchmark", file)) if file else (asked.directory, "benchmark")
    with tempfile.TemporaryDirectory() as temporary:
        model = _as_deployed(file, Path(temporary)) if file else _untrained(settings, asked.composed, Path(temporary))
        found = measured.benchmark(model, device, threads=settings.engine.threads or 1, say=console().print)
    machine = found["machine"]
    where = f"{machine['name']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    _speeds(f"the network, on {where}", ("batch",), found["network"])
    _speeds("one layer against F.linear", ("inputs", "outputs", "batch", "kind"), found["layers"])
    files = ", ".join(f"{name} {bytes_in_words(size)}" for name, size in found["files"].items())
    console().print(f"on disk: {files}")
    with writable(folder):
        write_json(folder / f"{name}.json", found)
        speed_plot(folder / f"{name}.png", found)
    said = f"in {folder}: {name}.json, {name}.png"
    return _with_export(said, asked) if file else said


def _with_next(said: str, task: str, asked: Asked, why: str, more: Sequence[str] = ()) -> str:
    """Returns what a task says at its end, and the command of another task with the same network, if there is one."""
    return "\n".join(filter(None, [said, next_command.of_network(task, asked.request, why, more)]))


def _with_export(said: str, asked: Asked) -> str:
    """Returns what a task says at its end, and the command that exports its network in a format that the network has."""
    network, _ = load_deployed(asked.model)
    more = [] if _has_format("onnx", network) else ["export.format=torch"]
    return _with_next(said, "export", asked, "for a device", more)


def _as_deployed(model: Path, folder: Path) -> Path:
    """The model file itself, or one in `folder` of what a checkpoint holds: its size is what a device needs."""
    if model.suffix != ".pt":
        return model
    network, about = load_model(model)
    save_model(folder / "model.safetensors", network, about["config"], tuple(about["image_shape"]), tuple(about["classes"]))
    return folder / "model.safetensors"


def _into(asked: Asked, model: Path, usual: Path) -> Path:
    """Returns the directory for the results of a model: the one that the user named, else the `usual` one.

    Raises:
        UserError: it is the directory of another run, whose results they would pass for.
    """
    into, run = asked.into(usual), run_of(model)
    if into.resolve() == run.resolve():
        return run
    directories.check_no_other_run(into)
    return into


def _named(what: str, model: Path) -> str:
    """Names results: those of the best network, or of any other file, do not replace those of the last."""
    which = which_of(model)
    return what if which == "last" else f"{what}-{which}"


def _untrained(settings: Settings, composed: DictConfig, folder: Path) -> Path:
    """A model file of the network that the settings describe."""
    arrays = plan.read(settings.dataset)
    torch.manual_seed(settings.seed)
    shape = arrays.train_images.shape[1:]
    network = models.build(settings.model, shape, len(arrays.classes), arrays.mean, arrays.std)
    file = folder / "model.safetensors"
    save_model(file, network, plan.values_of(composed), shape, arrays.classes)
    return file


def _speeds(title: str, keys: tuple[str, ...], rows: list[dict]) -> None:
    table = Table(*keys, "way", title=title, title_justify="left")
    for column in ("median, ms", "quartiles, ms", "images/s", "packed is"):
        table.add_column(column, justify="right")
    for row in rows:
        low, median, high = (f"{1e3 * row[key]:.3g}" for key in ("low", "median", "high"))
        faster = "" if row["way"] == "packed" else f"{row['speedup']:.1f}×"
        table.add_row(
            *(str(row[key]) for key in keys), row["way"], median, f"{low} to {high}", f"{row['images_per_second']:,.0f}", faster
        )
    console().print(table)


def _dataset(asked: Asked) -> Rows:
    """Returns the dataset of the run, but for what the command line says of it (see `bnn_exp.records.inherit`).

    Raises:
        UserError: it says something that nothing reads.
    """
    settings = load_settings(asked.composed)
    unread.check_rows(settings, asked.overrides)
    return settings.dataset
