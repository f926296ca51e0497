"""`task=report`: writes a table, a plot and an HTML page of existing runs. Imports no torch."""

from pathlib import Path

from bnn_exp.commands import sweep
from bnn_exp.commands.task import Task
from bnn_exp.config.settings import Report
from bnn_exp.errors import UserError
from bnn_exp.records import directories, runs
from bnn_exp.records.files import existing, writable
from bnn_exp.records.sweep_results import FILES, write_results


def report(task: Task) -> str:
    """Writes the report of the runs in `from`, and returns the message of the task's end.

    The report goes to the folder in `from` if there is only one, and if the report has no axes or the axes of that sweep's own
    report. Any other report goes to a new directory.

    Raises:
        UserError: `from` holds no run, or the directory holds a run, or the report that a sweep has made itself.
    """
    sources = task.places
    found = list(runs.find(sources))
    if not found:
        raise UserError(f"from={','.join(map(str, sources))}: no run there\nallowed: directories of runs or sweeps")
    axes = task.request.report
    default = axes == Report(x=None, y=None, group=None)
    own = sweep.own_report(sources[0]) if len(sources) == 1 else None
    if default:
        axes = own or axes
    into = task.into(sources[0] if len(sources) == 1 and (axes == own or default) else task.directory)
    _check_directory(into, sources[0] if len(sources) == 1 else None, axes)
    replaced = "; the earlier report is replaced" if directories.holds_sweep(into) and not sweep.own_report(into) else ""
    with writable(into):
        write_results(found, into, axes.y, axes.x, axes.group)
    return f"in {into}: {', '.join(existing(into, FILES))}{replaced}"


def _check_directory(into: Path, source: Path | None, axes: Report) -> None:
    """Raises UserError if the directory holds a run, or the report that a sweep has made itself.

    A sweep's directory may get the report that the sweep itself would make again.

    Args:
        into: the directory for the report.
        source: the only place of the runs; None if there are several places.
        axes: the axes of the report.
    """
    if source is not None and into.resolve() == source.resolve():
        problem = "" if sweep.own_report(into) in (None, axes) else "it holds the report of its own sweep"
    elif directories.holds_run(into):
        problem = "a run is there, which has a page of its own"
    else:
        problem = "it holds the report of its own sweep" if sweep.own_report(into) else ""
    if problem:
        raise UserError(f"hydra.run.dir={into}: {problem}\nallowed: another folder")
