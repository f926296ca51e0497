"""Prints the table of a sweep, and writes `sweep.csv`, `sweep.md`, `sweep.png`, `report.html` and `sweep_runs.csv`."""

from pathlib import Path

from rich.table import Table

from bnn_exp.records import html, runs
from bnn_exp.records.files import write_text
from bnn_exp.records.optional import attempt
from bnn_exp.records.runs import Record
from bnn_exp.records.sweeps import plot
from bnn_exp.records.sweeps.comparison import Comparison, compare
from bnn_exp.records.sweeps.runs_table import runs_csv
from bnn_exp.records.sweeps.text import label, reason, short_names
from bnn_exp.records.terminal import console

FILES = ("sweep.csv", "sweep.md", "sweep.png", "report.html", "sweep_runs.csv")


def write_results(
    records: list[Record],
    directory: Path,
    y: str | None = None,
    x: str | None = None,
    group: str | None = None,
    missing: int = 0,
) -> Comparison:
    """Compares the runs `records`, prints the table, and writes the result files into `directory`. Returns the comparison.

    Args:
        y: the number to compare; None for the test accuracy.
        x, group: the settings of the plot's horizontal axis and lines; None to choose them.
        missing: the number of jobs of the sweep that have not begun.

    Raises:
        UserError: the key `x` or `group` does not vary, or the runs lack the number `y`.
    """
    result = compare(records, y)
    result.missing = missing
    if result.rows:
        plot.axes_of(result, x, group)
    texts = {"sweep.csv": result.csv(), "sweep_runs.csv": runs_csv(result, records, directory), "sweep.md": result.markdown()}
    for name, text in texts.items():
        write_text(directory / name, text)
    if not (result.rows and attempt("sweep.png", plot.draw, directory / "sweep.png", result, x, group)):
        (directory / "sweep.png").unlink(missing_ok=True)  # an earlier result may have left a plot
    if runs.read(directory) is None:
        attempt("report.html", html.write_sweep_page, result, directory)
    else:  # `directory` is the directory of a single run
        attempt("report.html", html.write_run_page, directory)
    show(result)
    return result


def show(result: Comparison) -> None:
    """Prints the table of a comparison, its notes, the command of the best row, and the runs that did not complete."""
    say, (head, rows) = console(), result.cells()
    names = short_names(result.varied)
    head = [names.get(name, name) for name in head]
    if rows:
        table = Table(*head, title=f"{sum(len(row.runs) for row in result.rows)} runs", title_justify="left")
        for row, cells in zip(result.rows, rows, strict=True):
            table.add_row(*cells, style="bold green" if row.best else None)
        say.print(table)
    for note in result.notes:
        say.print(note)
    if result.best:
        say.print(f"the best: {result.best.command()}")
    for run in result.unfinished:
        say.print(f"not completed: {run.directory} {label(run, result.varied)}: {reason(run)}")
