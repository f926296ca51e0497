"""Makes `report.html`, the HTML page of one run."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from bnn_exp.records import runs
from bnn_exp.records.files import write_text
from bnn_exp.records.formatting import bytes_in_words, taken_for
from bnn_exp.records.html import data_uris
from bnn_exp.records.html.bits import bits_charts
from bnn_exp.records.html.charts import Chart, Series, heat, lines
from bnn_exp.records.html.evaluations import evaluated
from bnn_exp.records.html.render import render
from bnn_exp.records.runs import Record

DRAWN = 300  # largest number of epochs in charts and table
COUNTED = 20  # largest number of classes in a table of counts; the counts of more classes become an image
FILES = (
    "config.yaml", "metrics.jsonl", "summary.json", "model.safetensors", "checkpoints/last.pt", "checkpoints/best.pt",
    "curves.png", "samples.png", "kernels.png", "train.log",
)  # fmt: skip
MEMORY = {"state": "optimizer state", "gradients": "gradients (peak)", "saved": "saved for the backward pass"}
KNOWN = {"epoch", "train_loss", "train_seconds", "eval_seconds", "images_per_second", "flips", "ones"}
ACCURACIES = (("train", "c7 dashed"), ("validation", "c4"), ("test", "c0"))


def write_run_page(directory: Path) -> None:
    """Writes `report.html` into a run directory, from the files in the directory."""
    write_text(directory / "report.html", run_page(runs.read(directory)))


def run_page(record: Record) -> str:
    """Returns the HTML page of a run, which contains its images. The run may have failed or may be unfinished."""
    summary, config = record.summary, record.config
    epochs = thinned(record.epochs, DRAWN)
    layers = summary.get("layers") or []
    weights = {f"{layer['name']}.weight": layer["binary"] for layer in layers if layer["binary"]}
    parts = [record.setting(f"{group}.name") for group in ("model", "dataset")]
    return render(
        "run.html",
        title=" on ".join(map(str, parts)) if all(parts) else record.directory.name,
        name=record.directory.name,
        status=record.status,
        error=summary.get("error"),
        warnings=summary.get("warnings") or [],
        command=command(summary),
        tiles=_tiles(record),
        charts=[*_curves(epochs), *bits_charts(epochs, weights)] if epochs else [],
        layers=[_layer(layer, record.epochs) for layer in layers],
        memory=_memory(summary.get("memory")),
        **_mistakes(summary.get("classes"), summary.get("confusion")),
        kernels=data_uris.embedded(record.directory / "kernels.png"),
        samples=data_uris.embedded(record.directory / "samples.png"),
        settings=[(key, runs.as_text(value)) for key, value in runs.flat(config).items()],
        surroundings=[(key, runs.as_text(value)) for key, value in _surroundings(summary).items()],
        epochs=[_epoch(m, sum(weights.values())) for m in epochs],
        validated=any("validation_accuracy" in m for m in epochs),
        stride=-(-len(record.epochs) // DRAWN),
        files=[name for name in FILES if (record.directory / name).is_file()],
        **evaluated(record.directory),
    )


def thinned(epochs: list, most: int) -> list:
    """Returns every item, every second or every third item, and so on: at most `most` items, always with the last one."""
    return epochs[:: -max(-(-len(epochs) // most), 1)][::-1]


def command(summary: dict[str, Any]) -> str:
    """Returns the command line of a run from its summary: its own overrides if known, else the command as typed."""
    own = summary.get("overrides")
    arguments = [*(summary.get("flags") or []), *own] if own else summary.get("command") or []
    return shlex.join(["bnn-train", *map(str, arguments)])


def _tiles(record: Record) -> list[tuple[str, str, str]]:
    """Returns the main numbers of a run, each as (name, value, remark)."""
    s, tiles = record.summary, []
    if s.get("test_accuracy") is not None:
        tiles.append(("test accuracy", f"{s['test_accuracy']:.2f}%", "after the last epoch"))
    if s.get("best_validation_accuracy") is not None:
        remark = f"epoch {s['best_epoch']}; test accuracy there {s['best_test_accuracy']:.2f}%"
        tiles.append(("best in validation", f"{s['best_validation_accuracy']:.2f}%", remark))
    elif s.get("best_test_accuracy") is not None:
        remark = f"epoch {s['best_epoch']}, chosen on the test rows: optimistic"
        tiles.append(("best", f"{s['best_test_accuracy']:.2f}%", remark))
    if asked := record.setting("trainer.epochs"):
        tiles.append(("epochs", f"{len(record.epochs):,}", f"of {asked:,}"))
    if s.get("binary_parameters") is not None:
        remark = "verified to be bits" if s.get("binary_verified") else "not verified"
        tiles.append(("binary weights", f"{s['binary_parameters']:,}", remark))
    if s.get("bytes_as_bits"):
        as_fp32 = 4 * (s["binary_parameters"] + s["real_parameters"])
        tiles.append(("size", bytes_in_words(s["bytes_as_bits"]), f"{bytes_in_words(as_fp32)} as fp32"))
    if s.get("train_seconds") is not None:
        tiles.append(("training", f"{s['train_seconds']:,.1f} s", f"{s['seconds']:,.1f} s in all"))
    return tiles


def _curves(epochs: list[dict]) -> list[Chart]:
    """Returns charts over the epochs: of the accuracies, of the loss, and of any other metric, such as a rule's strength."""
    x = [m["epoch"] for m in epochs]
    accuracies = [
        Series(name, [m.get(f"{name}_accuracy") for m in epochs], style)
        for name, style in ACCURACIES
        if any(f"{name}_accuracy" in m for m in epochs)
    ]
    known = KNOWN | {f"{name}_accuracy" for name, _ in ACCURACIES}
    others = [key for key, value in epochs[-1].items() if key not in known and isinstance(value, int | float)]
    return [
        lines("Accuracy, %", x, accuracies, within=(0, 100)),
        lines("Training loss", x, [Series("loss", [m["train_loss"] for m in epochs])]),
        *(lines(key, x, [Series(key, [m.get(key) for m in epochs], "c2")]) for key in others),
    ]


def _layer(layer: dict, epochs: list[dict]) -> list[str]:
    """Returns a row of the table of layers: the description of a layer, and the ones and flips of its bits over the epochs."""
    tensor, binary = f"{layer['name']}.weight", layer["binary"]
    row = [layer["name"], layer["kind"], "×".join(map(str, layer["output"])), f"{binary:,}", f"{layer['real']:,}"]
    row.append(f"{layer['multiply_adds']:,}")
    if not (binary and epochs and tensor in epochs[-1]["ones"]):
        return [*row, "—", "—", "—"]
    flips = sum(m["flips"].get(tensor, 0) for m in epochs)
    first, last = (f"{100 * m['ones'][tensor] / binary:.2f}" for m in (epochs[0], epochs[-1]))
    return [*row, first, last, f"{flips / binary:.2f}"]


def _memory(memory: dict[str, dict[str, int]] | None) -> list[list[str]]:
    """Returns the rows of the memory table: purpose, bytes of the run, bytes that Adam with latent weights would need."""
    if not memory:
        return []
    own, adam = memory["run"], memory["adam"]
    rows = [(name, own[name], adam[name]) for name in own] + [("together", sum(own.values()), sum(adam.values()))]
    return [[MEMORY.get(name, name), f"{mine:,}", f"{theirs:,}"] for name, mine, theirs in rows]


def _mistakes(classes: list[str] | None, confusion: list[list[int]] | None) -> dict[str, Any]:
    """Returns the variables of the page's template about classes.

    `confusion` counts rows as [class][answer]. Up to COUNTED classes get a table of counts and shares, more classes an image.
    """
    if not classes or not confusion:
        return {"classes": [], "matrix": [], "by_class": [], "picture": None}
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    by_class = [
        [name, f"{sum(row):,}", f"{100 * shares[i, i]:.2f}", taken_for(i, row, classes)]
        for i, (name, row) in enumerate(zip(classes, confusion, strict=True))
    ]
    matrix, picture = [], None
    if len(classes) <= COUNTED:
        matrix = [list(zip(row, share, strict=True)) for row, share in zip(confusion, shares.tolist(), strict=True)]
    else:
        values = {"kind": "cells", "of": counts.sum(1).tolist(), "column": "answered", "unit": "rows", "cells": confusion}
        ramp = (data_uris.RAMP, "0", "100% of the rows of the class")
        note = "Rows: the class; columns: the answer. Colours show the square root, so rare mistakes are visible."
        coloured = data_uris.shades(np.where(counts, np.sqrt(shares), np.nan))
        picture = heat("Answers by class", classes, classes, coloured, values, note, ramp)
    return {"classes": classes, "matrix": matrix, "by_class": by_class, "picture": picture}


def _epoch(m: dict, weights: int) -> list[str]:
    cells = [str(m["epoch"]), f"{m['train_loss']:.4f}", f"{m['train_accuracy']:.2f}"]
    if "validation_accuracy" in m:
        cells.append(f"{m['validation_accuracy']:.2f}")
    ones = f"{100 * sum(m['ones'].values()) / weights:.2f}" if weights else "—"
    cells += [f"{m['test_accuracy']:.2f}", f"{sum(m['flips'].values()):,}", ones]
    return [*cells, f"{m['train_seconds'] + m['eval_seconds']:.2f}", f"{m['images_per_second']:,.0f}"]


def _surroundings(summary: dict[str, Any]) -> dict[str, Any]:
    keys = ("seed", "device", "threads", "dataset", "bits_sha256", "git_commit", "machine", "cpus", "versions")
    return runs.flat({key: summary[key] for key in keys if summary.get(key) is not None})
