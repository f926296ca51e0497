"""The tasks of `bnn-train` that begin with a trained network: evaluate, predict, export, benchmark."""

import json
import tempfile
from pathlib import Path

import torch
from rich.table import Table

from bnn_exp import config, models, plan
from bnn_exp.data.sources import Arrays
from bnn_exp.deploy import benchmark as measured
from bnn_exp.deploy import evaluate as evaluation
from bnn_exp.deploy.benchmark_plot import speed_plot
from bnn_exp.deploy.load import load_packed
from bnn_exp.deploy.to_c import export_c
from bnn_exp.deploy.to_onnx import export_onnx
from bnn_exp.deploy.to_torch import export_torch
from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing
from bnn_exp.records.model import save_model
from bnn_exp.records.report import by_class
from bnn_exp.records.words import bytes_in_words, console
from bnn_exp.tasks import Asked


def evaluate(asked: Asked) -> str:
    """`task=evaluate`: test rows of the dataset that is named, else of the run's own, by its network as floats and on bits."""
    result = evaluation.evaluate(asked.model, _arrays(asked))
    console().print(by_class(result.confusion, result.classes))
    table = Table(title=f"{result.rows:,} test rows", title_justify="left")
    for column in ("network", "test %", "different predictions", "seconds"):
        table.add_column(column)
    table.add_row("float", f"{result.accuracy_float:.2f}", "", f"{result.seconds_float:.3g}")
    if result.accuracy_packed is None:
        table.add_row("packed", "—", result.packed, "")
    else:
        different = str(result.different_predictions)
        table.add_row("packed", f"{result.accuracy_packed:.2f}", different, f"{result.seconds_packed:.3g}")
    console().print(table)
    return f"in {_folder(asked.model)}: evaluation.json, mistakes.png"


def predict(asked: Asked) -> str:
    """`task=predict`: classes and probabilities of the images of `input`."""
    if not asked.request.input:
        raise UserError("task=predict needs input=\nallowed: an image, or a folder of them")
    answers = evaluation.predict(asked.model, Path(asked.request.input))
    table = Table("image", "class", "probability", "then")
    for file, (first, *others) in answers:
        table.add_row(file.name, first[0], f"{100 * first[1]:.1f}%", ", ".join(f"{c} {100 * p:.1f}%" for c, p in others))
    console().print(table)
    return f"{len(answers)} image{'s' * (len(answers) > 1)}"


def export(asked: Asked) -> str:
    """`task=export`: the packed network in another form, checked on every test row before it counts as done."""
    wanted = asked.request.export
    network, about = load_packed(asked.model)
    into = Path(wanted.dir) if wanted.dir else _folder(asked.model) / "export"
    images = torch.from_numpy(_arrays(asked).test_images)
    if wanted.format == "torch":
        facts = export_torch(network, into, images)
    else:
        facts = {"c": export_c, "onnx": export_onnx}[wanted.format](network, into, images, tuple(about["classes"]))
    sizes = [
        f"{key.removesuffix('bytes').replace('_', ' ')}{bytes_in_words(value)}"
        for key, value in facts.items()
        if key.endswith("bytes")
    ]
    files = [file.name for file in facts.get("files", [facts.get("file")])]
    return f"in {into}: {', '.join(files)}; {', '.join(sizes)}; the same predictions for all {len(images):,} test rows"


def benchmark(asked: Asked) -> str:
    """`benchmark=inference`: speed and memory of the packed network beside torch's, one thread when nothing else is said.

    Without `from` the network is that of the configuration, its weights as they begin.
    """
    settings = config.load(asked.composed)
    device = torch.device(plan.device_of(settings.device))
    with tempfile.TemporaryDirectory() as temporary:
        model = asked.model if asked.request.from_ else _untrained(settings, plan.values_of(asked.composed), Path(temporary))
        found = measured.benchmark(model, device, threads=settings.trainer.threads or 1)
    folder = _folder(asked.model) if asked.request.from_ else asked.directory
    with replacing(folder / "benchmark.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
    speed_plot(folder / "benchmark.png", found)
    machine = found["machine"]
    where = f"{machine['name']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    _speeds(f"the network, on {where}", ("batch",), found["network"])
    _speeds("one layer against F.linear", ("inputs", "outputs", "batch", "kind"), found["layers"])
    files = ", ".join(f"{name} {bytes_in_words(size)}" for name, size in found["files"].items())
    console().print(f"on disk: {files}")
    return f"in {folder}: benchmark.json, benchmark.png"


def _untrained(settings: config.Settings, values: dict, folder: Path) -> Path:
    """A model file of the network that the settings describe."""
    arrays = plan.read(settings.dataset)
    torch.manual_seed(settings.seed)
    shape = arrays.train_images.shape[1:]
    network = models.build(settings.model, shape, len(arrays.classes), arrays.mean, arrays.std)
    file = folder / "model.safetensors"
    save_model(file, network, values, shape, arrays.classes)
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


def _arrays(asked: Asked) -> Arrays:
    """The dataset of the run, but for what the command line says of it (see `bnn_exp.inherit`)."""
    return plan.read(config.load(asked.composed).dataset)


def _folder(model: Path) -> Path:
    return model if model.is_dir() else model.parent
