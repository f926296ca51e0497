"""`benchmark=inference`: measures a packed network beside torch, then prints and writes the results."""

import tempfile
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.table import Table

from bnn_exp import models
from bnn_exp.commands.benchmark.inference_plot import speed_plot
from bnn_exp.commands.benchmark.inference_speed import measure
from bnn_exp.commands.export import line_to_export
from bnn_exp.commands.task import Task, joined, named
from bnn_exp.config.settings import Settings, load_settings
from bnn_exp.records.files import writable, write_json
from bnn_exp.records.formatting import bytes_in_words
from bnn_exp.records.model import load_model, save_model
from bnn_exp.records.runs import run_of
from bnn_exp.records.terminal import console
from bnn_exp.training import plan


def benchmark(task: Task) -> str:
    """Measures the network that the setting `from` names, on one thread unless `engine.threads` is set.

    Without `from`, the network of the configuration is measured, with the weights that a training begins with. Writes
    `benchmark.json` and a plot. Returns the message of the task's end.

    Raises:
        UserError: the network can't be read or packed, or the directory can't be used.
    """
    settings = load_settings(task.composed)
    device = torch.device(plan.device_of(settings.device))
    file = task.model if task.request.from_ else None
    into, name = (task.into_run_or(run_of(file), file), named("benchmark", file)) if file else (task.directory, "benchmark")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = _model_file(file, folder) if file else _untrained(settings, task.composed, folder)
        found = measure(model, device, threads=settings.engine.threads or 1, say=console().print)
    _print(found)
    with writable(into):
        write_json(into / f"{name}.json", found)
        speed_plot(into / f"{name}.png", found)
    return joined(f"in {into}: {name}.json, {name}.png", line_to_export(task) if file else "")


def _model_file(file: Path, folder: Path) -> Path:
    """Returns `file` if it is a model file. If it is a checkpoint, saves its network in `folder` and returns the new file."""
    if file.suffix != ".pt":
        return file
    network, about = load_model(file)
    save_model(folder / "model.safetensors", network, about["config"], tuple(about["image_shape"]), tuple(about["classes"]))
    return folder / "model.safetensors"


def _untrained(settings: Settings, composed: DictConfig, folder: Path) -> Path:
    """Saves a new network of the settings as a model file in `folder`, and returns the file."""
    arrays = plan.read(settings.dataset)
    torch.manual_seed(settings.seed)
    shape = arrays.train_images.shape[1:]
    network = models.build(settings.model, shape, len(arrays.classes), arrays.mean, arrays.std)
    file = folder / "model.safetensors"
    save_model(file, network, plan.values_of(composed), shape, arrays.classes)
    return file


def _print(found: dict) -> None:
    machine = found["machine"]
    where = f"{machine['name']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    _print_speeds(f"the network, on {where}", ("batch",), found["network"])
    if "share" in found["layers"][0]:
        _print_layers(found["layers"])
    else:
        _print_speeds("one layer against F.linear", ("inputs", "outputs", "batch", "kind"), found["layers"])
    tensors = ", ".join(f"{name} {bytes_in_words(size)}" for name, size in found["tensors"].items())
    console().print(f"in memory: {tensors}")
    files = ", ".join(f"{name} {bytes_in_words(size)}" for name, size in found["files"].items())
    console().print(f"on disk: {files}")


def _print_layers(rows: list[dict]) -> None:
    title = f"the layers of the packed network, {rows[0]['batch']} images; torch: the product alone, fp32"
    table = Table("layer", "kind", "reads", "gives", title=title, title_justify="left")
    for column in ("multiply-adds", "ms", "share", "torch, ms", "packed is"):
        table.add_column(column, justify="right")
    for row in rows:
        beside = (f"{1e3 * row['torch']:.3g}", f"{row['torch'] / row['median']:.1f}×") if row["torch"] else ("", "")
        products = f"{row['multiply_adds']:,}" if row["multiply_adds"] else ""
        numbers = (products, f"{1e3 * row['median']:.3g}", f"{100 * row['share']:.1f}%", *beside)
        table.add_row(str(row["layer"]), row["kind"], row["reads"], row["gives"], *numbers)
    console().print(table)


def _print_speeds(title: str, keys: tuple[str, ...], rows: list[dict]) -> None:
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
