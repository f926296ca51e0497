"""Makes `sweep_runs.csv`, a table with one row per run, before the mean over the seeds. Imports no torch."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from bnn_exp.records.runs import Record, as_text
from bnn_exp.records.sweeps.comparison import STATE, TEST, VALIDATION, Comparison
from bnn_exp.records.sweeps.varied_settings import filled

MEASURED = (TEST, "best_test_accuracy", VALIDATION, "best_epoch", "epochs", "train_seconds", STATE)


def runs_csv(comparison: Comparison, records: Sequence[Record], directory: Path) -> str:
    """Returns a CSV table with one row per run: its directory, seed, status, varied settings, and results.

    Run directories below `directory` are relative to `directory`, so a sweep can be moved. Other paths are absolute. A cell
    is empty if the run lacks the number, for example because the run failed.
    """
    measured = list(dict.fromkeys((comparison.y, *MEASURED)))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "seed", "status", *comparison.varied, *measured, "error"])
    for record, config in zip(records, filled(records), strict=True):
        last = record.epochs[-1] if record.epochs else {}
        numbers = [_text(record.summary.get(key, last.get(key))) for key in measured]
        settings = [_text(config.get(key)) for key in ("seed", *comparison.varied)]
        error = str(record.summary.get("error") or "").replace("\n", "; ")
        table.writerow([_place(record.directory, directory), settings[0], record.status, *settings[1:], *numbers, error])
    return text.getvalue()


def _place(run: Path, directory: Path) -> Path:
    run, directory = run.absolute(), directory.absolute()
    return run.relative_to(directory) if run.is_relative_to(directory) else run


def _text(value: object) -> str:
    return "" if value is None else as_text(value)
