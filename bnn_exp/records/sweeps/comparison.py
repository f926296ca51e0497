"""Compares runs: one row per configuration, with the mean and standard deviation over the seeds. Imports no torch.

All numbers come from files in the run directories, so the launcher, a crash and the time of
the comparison have no effect. Runs that
differ only in the seed form one row. Two runs of one seed and one configuration are repeats, which
count as one seed.
"""

import csv
import io
import shlex
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bnn_exp.records import markdown
from bnn_exp.records.runs import Record, as_text, own_overrides
from bnn_exp.records.sweeps.numbers import has_all, over_seeds
from bnn_exp.records.sweeps.text import label, mean_and_deviation, reason
from bnn_exp.records.sweeps.varied_settings import filled, shortened, varied_keys

STATE = "state_bytes_per_weight"
VALIDATION = "best_validation_accuracy"
TEST = "test_accuracy"
BY_TEST = (TEST, "best_test_accuracy")
LESS_IS_BETTER = ("loss", "seconds", "bytes")


@dataclass
class Row:
    """One row of a comparison, for one configuration: the settings, the completed runs, and the mean of the compared number."""

    settings: dict[str, Any]
    whole: dict[str, Any]  # the same settings, but with complete paths
    runs: list[Record]
    mean: float
    std: float | None  # sample standard deviation over the seeds; None for a single seed
    best: bool = False
    every: dict[str, Any] = field(default_factory=dict)  # all settings, also those that do not vary

    def value(self, key: str) -> Any:
        """Returns the value of the setting `key`; None if the configuration lacks the key. A path is shortened to the part that
        differs between the rows."""
        return self.settings.get(key, self.every.get(key))

    @property
    def seeds(self) -> int:
        """The number of different seeds among the runs of the row."""
        return len({run.setting("seed") for run in self.runs})

    @property
    def seconds_per_epoch(self) -> float:
        """The mean seconds of a training epoch over the runs of the row, without evaluation."""
        seconds = [run.summary["train_seconds"] / max(run.summary["epochs"], 1) for run in self.runs]
        return statistics.fmean(seconds)

    def number(self, key: str) -> float:
        """Returns the mean over the seeds of the number `key`, from the summaries or the last epochs of the runs.

        Raises:
            UserError: a run lacks this number.
        """
        return over_seeds(self.runs, key)[0]

    @property
    def in_words(self) -> str:
        """The mean of the compared number with its standard deviation, as text, such as 97.31 ± 0.12."""
        return mean_and_deviation(self.mean, self.std)

    def command(self) -> str:
        """Returns the `bnn-train` command line of the row's first run."""
        run = self.runs[0]
        own = own_overrides(run.summary.get("overrides") or [], run.config.get("plugins") or [])
        return shlex.join(["bnn-train", *(run.summary.get("flags") or []), *own])


@dataclass
class Comparison:
    """Runs grouped by configuration.

    Args:
        y: the compared number.
        by: the number that chooses the best row.
        varied: the fewest dotted keys that tell the configurations apart, without the seed.
        unfinished: all runs that did not complete.
        missing: the number of jobs of the sweep that have not begun.
    """

    y: str
    by: str
    varied: list[str]
    rows: list[Row]
    unfinished: list[Record] = field(default_factory=list)
    missing: int = 0

    def varies(self, key: str) -> bool:
        """Returns True if configurations differ in the setting `key`, even if the table has no column for the setting."""
        return key in self.varied or len({as_text(row.value(key)) for row in self.rows}) > 1

    @property
    def best(self) -> Row | None:
        """The best row; None without completed runs."""
        return next((row for row in self.rows if row.best), None)

    @property
    def validated(self) -> bool:
        """True if the table has a column of validation accuracies: every run has validation rows, and `y` is another number."""
        return self.y != VALIDATION and has_all([run for row in self.rows for run in row.runs], VALIDATION)

    @property
    def repeated(self) -> bool:
        """True if a configuration has several runs of one seed."""
        return any(row.seeds < len(row.runs) for row in self.rows)

    @property
    def costs(self) -> dict[str, str]:
        """Further numbers that the table shows, as {key of summary.json: column title}.

        The only such number is the bytes of optimizer state per weight, if the runs differ in it.
        """
        state = {run.summary.get(STATE) for row in self.rows for run in row.runs}
        return {STATE: "state, B/weight"} if len(state) > 1 and None not in state else {}

    @property
    def notes(self) -> list[str]:
        """Sentences below the table: the jobs that are missing, how the best row was chosen, and what counts as a seed."""
        notes = []
        if self.missing:
            have = "have" if self.missing > 1 else "has"
            notes.append(f"The sweep is incomplete: {self.missing} of its jobs {have} not begun.")
        if len(self.rows) > 1 and self.by in BY_TEST:
            way = (
                "Without report.y it is" if self.validated else "With dataset.validation=0.1 some rows are kept back, and it is"
            )
            notes.append(
                f"The best is chosen on the test rows themselves (by {self.by}), so its accuracy is optimistic. "
                f"{way} chosen by validation."
            )
        elif len(self.rows) > 1:
            notes.append(f"The best is chosen by {self.by}.")
        if self.repeated:
            notes.append("Runs of one seed and one configuration are repeats: they count as one seed, without a deviation.")
        return notes

    def csv(self) -> str:
        """Returns the text of `sweep.csv`, the table with full numbers."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        measured = [self.y, *([VALIDATION] if self.validated else [])]
        heads = [f"{key}_{part}" for key in measured for part in ("mean", "std")]
        table.writerow([*self.varied, "runs", "seeds", *self.costs, *heads, "seconds_per_epoch", "best"])
        for row in self.rows:
            values = [as_text(row.whole[key]) for key in self.varied]
            numbers = ["" if value is None else value for key in measured for value in over_seeds(row.runs, key)]
            costs = [row.number(key) for key in self.costs]
            table.writerow([*values, len(row.runs), row.seeds, *costs, *numbers, row.seconds_per_epoch, int(row.best)])
        return text.getvalue()

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Returns the table that readers see: the column titles, and a list of texts per row."""
        seeds, validated = ["seeds"] * self.repeated, ["best in validation"] * self.validated
        rows = [
            [
                *(_short(row.settings[key]) for key in self.varied),
                str(len(row.runs)),
                *([str(row.seeds)] if seeds else []),
                *(f"{row.number(key):.3g}" for key in self.costs),
                *([mean_and_deviation(*over_seeds(row.runs, VALIDATION))] if validated else []),
                row.in_words,
                f"{row.seconds_per_epoch:.3g}",
                "best" * row.best,
            ]
            for row in self.rows
        ]
        return [*self.varied, "runs", *seeds, *self.costs.values(), *validated, self.y, "s/epoch", ""], rows

    def markdown(self) -> str:
        """Returns the text of `sweep.md`: the table, its notes, the command of the best row, and the unfinished runs."""
        head, rows = self.cells()
        parts = [markdown.table(head, rows, bold=[row.best for row in self.rows])]
        parts += [markdown.text(note) for note in self.notes]
        if self.best:
            parts.append(f"The best: {markdown.code(self.best.command())}")
        if self.unfinished:
            lost = [(run.directory.name, f"{label(run, self.varied)}: {reason(run)}") for run in self.unfinished]
            parts += ["Not completed:", "\n".join(f"- {markdown.code(name)} {markdown.text(why)}" for name, why in lost)]
        return "\n\n".join(parts) + "\n"


def compare(records: Iterable[Record], y: str | None = None) -> Comparison:
    """Groups runs by configuration and compares the number `y`.

    Args:
        y: a number of the summaries, or of the last lines of metrics.jsonl. None means the test accuracy; then the validation
            accuracy chooses the best row, if every run has a validation accuracy.

    Raises:
        UserError: a completed run lacks the number.
    """
    records = list(records)
    completed = [record for record in records if record.status == "completed" and record.config]
    configs = filled(completed)
    varied = varied_keys(completed)
    groups: dict[tuple, list[int]] = {}
    for i, config in enumerate(configs):
        groups.setdefault(tuple(as_text(config.get(key)) for key in varied), []).append(i)
    firsts = [configs[places[0]] for places in groups.values()]
    shown = {key: shortened([first.get(key) for first in firsts]) for key in varied}
    by, y = y or (VALIDATION if has_all(completed, VALIDATION) else TEST), y or TEST
    rows = []
    for i, places in enumerate(groups.values()):
        runs = [completed[place] for place in places]
        whole = {key: firsts[i].get(key) for key in varied}
        row = Row({key: shown[key][i] for key in varied}, whole, runs, *over_seeds(runs, y), every=firsts[i])
        rows.append(row)
    if rows:
        less = any(word in by for word in LESS_IS_BETTER)
        (min if less else max)(rows, key=lambda row: row.number(by)).best = True
    return Comparison(y, by, varied, rows, [record for record in records if record not in completed])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)
