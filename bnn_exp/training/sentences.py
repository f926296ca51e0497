"""The sentences that a run prints before its first epoch and after its last."""

from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from bnn_exp.records import chance, next_command
from bnn_exp.records.files import existing
from bnn_exp.records.formatting import best_in_words, bytes_in_words
from bnn_exp.training.finetune import Beginning

if TYPE_CHECKING:
    from bnn_exp.training.run import Run

FILES = ("report.html", "model.safetensors", "metrics.jsonl", "summary.json", "checkpoints/")
PICTURES = ("curves.png", "samples.png", "kernels.png")


def data_and_device(run: "Run") -> str:
    """Returns the sentence that names the data, the device, the engine, the precision and the directory of a run."""
    device, devices = run.trainer.device, run.settings.engine.devices
    where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{device}"
    if devices > 1:
        where = f"{devices} devices ({where} each)"
    data = f"{run.settings.dataset.name}: {_rows(run)}, {len(run.data.classes)} classes"
    return f"{data}; on {where} in {run.trainer.settings.engine.precision}, engine={run.trainer.engine}; in {run.directory}"


def beginning(run: "Run") -> list[str]:
    """Returns the sentences on layers that were loaded or frozen, and on the checkpoint that the run resumes from."""
    lines = Beginning(**run.trainer.beginning).lines() if run.trainer.beginning else []
    if run.resumed:
        progress = run.trainer.progress
        lines.append(f"resumed after epoch {progress.epoch}, batch {progress.batch}")
    return lines


def result(run: "Run", summary: dict[str, Any]) -> list[str]:
    """Returns the sentences on a run's results and files, from its summary."""
    fp32 = sum(layer.bytes_as_fp32 for layer in run.layers)
    best = f", {best_in_words(summary)}" if run.epochs else ""
    tested = f" of {_limited(run)} rows" if _limited(run) else ""
    lines = [
        f"{summary['status']}: test {summary['test_accuracy']:.2f}%{tested}{best}, "
        f"{summary['train_seconds']:.1f} s of training",
        f"{summary['binary_parameters']:,} binary weights, all verified to be 0 or 1, and "
        f"{summary['real_parameters']:,} real parameters: {bytes_in_words(summary['bytes_as_bits'])} in place of "
        f"{bytes_in_words(fp32)} as fp32",
    ]
    if summary["memory"]:
        own, adam = (bytes_in_words(sum(summary["memory"][name].values())) for name in ("run", "adam"))
        lines.append(f"memory of a step: {own}; {adam} under Adam with latent weights (details in summary.json)")
    return [*lines, f"in {run.directory}: {', '.join(existing(run.directory, FILES + PICTURES))}"]


def beside_chance(run: "Run") -> tuple[list[str], str]:
    """Compares the accuracies of a run with chance.

    Returns:
        A remark on each accuracy that is not clearly above chance, and advice if an accuracy is near chance (else "").
    """
    rows = torch.bincount(run.data.train.labels, minlength=len(run.data.classes))
    accuracies = {
        "training": (run.epochs[-1]["train_accuracy"], rows.tolist()),
        "test": (run.evaluation["test_accuracy"], run.confusion.sum(1).tolist()),
    }
    remarks = [text for name, found in accuracies.items() if (text := chance.remark(name, *found))]
    near = any(chance.near_chance(*found) for found in accuracies.values())
    flips = sum(sum(epoch["flips"].values()) for epoch in run.epochs)
    return remarks, chance.advice(run.settings, run.data.image_shape[0], flips) if near else ""


def following(run: "Run", flags: list[str]) -> str:
    """Returns a line with a useful next command after a completed run; "" if there is no such command."""
    ended = next_command.Ended(
        settings=run.settings,
        overrides=run.plan.overrides,
        directory=run.directory,
        train_accuracy=run.epochs[-1]["train_accuracy"] if run.epochs else 0.0,
        test_accuracy=run.evaluation["test_accuracy"],
        channels=run.data.image_shape[0],
        resumed=run.resumed,
        in_sweep=HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN,
        plugins=run.config.get("plugins") or (),
        flags=flags,
    )
    return ended.next()


def _rows(run: "Run") -> str:
    splits = {"train": run.data.train, "validation": run.data.validation, "test": run.data.test}
    counts = {name: f"{len(split):,} {name}" for name, split in splits.items() if split is not None}
    if limited := _limited(run):
        counts["test"] = f"{limited} test"
    return f"{', '.join(counts.values())} rows"


def _limited(run: "Run") -> str:
    """Returns a text such as "500 of 10,000" if only some test samples are evaluated; else ""."""
    evaluated, limit = len(run.data.test), run.settings.trainer.limit_eval
    all_of_them = len(run.plan.arrays.test_labels) if run.plan.arrays else evaluated
    return f"{evaluated:,} of {all_of_them:,}" if limit and all_of_them > evaluated else ""
