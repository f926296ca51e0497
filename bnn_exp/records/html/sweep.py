"""Makes the HTML page of a sweep or of any runs: the table, charts over the varied settings, and the curves of all runs."""

import os
from pathlib import Path
from urllib.parse import quote

from bnn_exp.records.files import write_text
from bnn_exp.records.html.charts import COLOURS, Chart, Series, lines
from bnn_exp.records.html.render import render
from bnn_exp.records.html.run import thinned
from bnn_exp.records.html.scatter import in_title, over, settings
from bnn_exp.records.runs import Record, as_text
from bnn_exp.records.sweeps.comparison import VALIDATION, Comparison
from bnn_exp.records.sweeps.numbers import over_seeds
from bnn_exp.records.sweeps.text import label, mean_and_deviation, reason, short_names

KEYS = 5  # largest number of settings that get a chart
DRAWN = 20_000  # largest number of points of all curves together


def write_sweep_page(comparison: Comparison, directory: Path) -> None:
    """Writes the HTML page of a comparison as `report.html` into `directory`."""
    write_text(directory / "report.html", sweep_page(comparison, directory))


def sweep_page(comparison: Comparison, directory: Path) -> str:
    """Returns the HTML page of a comparison. Links to the pages of runs are relative to `directory`, the folder of
    the page."""
    charts = [over(key, comparison) for key in comparison.varied[:KEYS]] if comparison.rows else []
    return render(
        "sweep.html",
        title=f"{in_title(comparison.y)} of {sum(len(row.runs) for row in comparison.rows)} runs",
        name=directory.name,
        tiles=_tiles(comparison),
        charts=charts + _curves(comparison),
        varied=short_names(comparison.varied),
        costs=list(comparison.costs.values()),
        y=comparison.y,
        notes=comparison.notes,
        validated=comparison.validated,
        best=comparison.best.command() if comparison.best else "",
        rows=[
            {
                "values": [as_text(row.settings[key]) for key in comparison.varied],
                "costs": [f"{row.number(key):.3g}" for key in comparison.costs],
                "validation": mean_and_deviation(*over_seeds(row.runs, VALIDATION)) if comparison.validated else "",
                "y": row.in_words,
                "seconds": f"{row.seconds_per_epoch:.3g}",
                "runs": [_link(run, directory) for run in row.runs],
                "best": row.best,
            }
            for row in comparison.rows
        ],
        unfinished=[(_link(run, directory), label(run, comparison.varied), reason(run)) for run in comparison.unfinished],
    )


def _tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    names = short_names(comparison.varied)
    tiles = [("best", row.in_words, settings(row, comparison.varied, names)) for row in comparison.rows if row.best]
    runs = [run for row in comparison.rows for run in row.runs]
    most = max((len(row.runs) for row in comparison.rows), default=0)
    tiles.append(("configurations", str(len(comparison.rows)), f"of up to {most} run{'s' * (most != 1)} each"))
    tiles.append(("runs", str(len(runs) + len(comparison.unfinished)), f"{len(comparison.unfinished)} not completed"))
    seconds = sum(run.summary.get("train_seconds") or 0 for run in runs)
    return [*tiles, ("training", f"{seconds:,.0f} s", "of all completed runs together")]


def _link(run: Record, directory: Path) -> tuple[str | None, str]:
    """Returns (link, text of the link) to the page of a run, relative to `directory`. The link is None if there is no page."""
    seed = run.setting("seed")
    name = run.directory.name if seed is None else f"seed {seed}"
    page = run.directory / "report.html"
    target = Path(os.path.relpath(page, directory)).as_posix()
    return quote(os.fsencode(target)) if page.is_file() else None, name


def _curves(comparison: Comparison) -> list[Chart]:
    """Returns a chart of the compared number over the epochs; of the test accuracy if the epochs lack this number.

    Each run has a line, and each configuration a colour. The list is empty if no run has epochs.
    """
    runs = [(row, run) for row in comparison.rows for run in row.runs if run.epochs]
    if not runs:
        return []
    key = comparison.y if all(comparison.y in run.epochs[0] for _, run in runs) else "test_accuracy"
    last = max(run.epochs[-1]["epoch"] for _, run in runs)
    x = thinned(list(range(1, last + 1)), max(DRAWN // len(runs), 20))
    best = [row for row in comparison.rows if row.best]
    coloured = comparison.rows if len(comparison.rows) <= COLOURS else best
    styles = {id(row): f"c{i}" for i, row in enumerate(coloured)}
    series, names = [], short_names(comparison.varied)
    for row, run in sorted(runs, key=lambda pair: pair[0].best):  # the best row comes last, so its curves lie on top
        values = {m["epoch"]: m.get(key) for m in run.epochs}
        name = f"{settings(row, comparison.varied, names)} seed={run.setting('seed')}".strip()
        series.append(Series(name, [values.get(epoch) for epoch in x], f"thin {styles.get(id(row), 'c7 faint')}"))
    legend = [(f"c{i}", settings(row, comparison.varied, names) or "all runs") for i, row in enumerate(coloured)]
    if len(coloured) < len(comparison.rows):
        legend.append(("c7 faint", "all others"))
    return [lines(f"{in_title(key)} of each run", x, series, legend=legend)]
