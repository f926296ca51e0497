"""`benchmark.png` of a training: images per second and memory at the peak, with a bar for each way to train."""

from pathlib import Path
from typing import Any

from bnn_exp.records.files import replacing
from bnn_exp.records.matplotlib_figure import new_figure


def training_plot(file: Path, found: dict[str, Any]) -> None:
    """Draws the results in `found`, the content of `benchmark.json`, as a PNG in `file`.

    Error bars of speeds span the quartiles; error bars of memory span all processes.
    """
    figure = new_figure(11, 3.6, dpi=110, layout="constrained")
    speed, memory = figure.subplots(1, 2)
    rows = found["ways"][::-1]
    speeds = [row["images_per_second"] for row in rows]
    spread = [
        [s * (1 - row["median"] / row["high"]) for s, row in zip(speeds, rows, strict=True)],
        [s * (row["median"] / row["low"] - 1) for s, row in zip(speeds, rows, strict=True)],
    ]
    speed.barh([row["way"] for row in rows], speeds, xerr=spread, capsize=3, color="#0072b2")
    speed.set(title="training, images/s")
    sizes = dict(reversed((found["memory"] or {}).items()))
    peaks = [size["peak_bytes"] / 1e6 for size in sizes.values()]
    lower = [peak - size["peaks"][0] / 1e6 for peak, size in zip(peaks, sizes.values(), strict=True)]
    upper = [size["peaks"][-1] / 1e6 - peak for peak, size in zip(peaks, sizes.values(), strict=True)]
    memory.barh(list(sizes), peaks, xerr=[lower, upper], capsize=3, color="#e69f00")
    memory.set(title="memory at the peak of training, MB")
    for axes in (speed, memory):
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    machine, training = found["machine"], found["training"]
    figure.suptitle(f"batch {training['batch']}, {machine['name']}, threads: {machine['threads']}", fontsize="medium")
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png")
