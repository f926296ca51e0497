"""`benchmark.png` of an inference: images per second over the batch size, with a line for each way to compute the network."""

from pathlib import Path
from typing import Any

from bnn_exp.records.files import replacing
from bnn_exp.records.matplotlib_figure import new_figure


def speed_plot(file: Path, found: dict[str, Any]) -> None:
    """Draws the speeds in `found`, from `inference_speed.measure`, as the PNG `file`. Error bars span the quartiles."""
    figure = new_figure(8, 4.8, layout="constrained")
    axes = figure.subplots()
    ways: dict[str, list[dict]] = {}
    for row in found["network"]:
        ways.setdefault(row["way"], []).append(row)
    for way, rows in ways.items():
        speeds = [row["images_per_second"] for row in rows]
        spread = [
            [s - row["batch"] / row["high"] for s, row in zip(speeds, rows, strict=True)],
            [row["batch"] / row["low"] - s for s, row in zip(speeds, rows, strict=True)],
        ]
        axes.errorbar([row["batch"] for row in rows], speeds, spread, fmt="o-", capsize=3, label=way)
    machine = found["machine"]
    axes.set(
        xscale="log", yscale="log", xlabel="batch", ylabel="images/s", title=f"{machine['name']}, threads: {machine['threads']}"
    )
    axes.set_xticks([row["batch"] for row in rows], [str(row["batch"]) for row in rows])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend()
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
