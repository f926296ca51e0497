"""What many runs say together: a row per configuration, its seeds folded into mean ± standard deviation. Imports no torch.

All of it comes from the run directories' own files, so that it is the same under every launcher, after a crash, and later.
"""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnn_exp.errors import UserError
from bnn_exp.records.runs import Record, as_text, flat

NO_CONFIGURATION = (  # what tells runs, not configurations, apart
    "seed", "resume", "device", "dataset.path", "trainer.threads",
    "logger.name", "logger.uri", "logger.experiment", "logger.project", "logger.mode",
)  # fmt: skip
STATE = "state_bytes_per_weight"
LESS_IS_BETTER = ("loss", "seconds", "bytes")


@dataclass
class Row:
    """A configuration: the values of what varies, and its completed runs, one a seed."""

    settings: dict[str, Any]
    runs: list[Record]
    mean: float
    std: float | None  # of the sample; None for a single run
    best: bool = False

    @property
    def seconds_per_epoch(self) -> float:
        """Of training, without evaluation; the mean over the runs."""
        seconds = [run.summary["train_seconds"] / max(run.summary["epochs"], 1) for run in self.runs]
        return statistics.fmean(seconds)

    def number(self, key: str) -> float:
        """The mean over the runs of a number of their summaries or last epochs.

        Raises:
            UserError: a run has no such number.
        """
        return statistics.fmean(number(run, key) for run in self.runs)


@dataclass
class Study:
    """Runs by configuration, the one whose `y` is best marked; `unfinished` are all that did not complete."""

    y: str
    varied: list[str]  # dotted keys, the fewest that tell the configurations apart; not the seed
    rows: list[Row]
    unfinished: list[Record] = field(default_factory=list)

    @property
    def costs(self) -> dict[str, str]:
        """What a row tells beside its settings and `y`: numbers of the summaries by their heads."""
        state = {run.summary.get(STATE) for row in self.rows for run in row.runs}
        return {STATE: "state, B/weight"} if len(state) > 1 and None not in state else {}

    def csv(self) -> str:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*self.varied, "runs", *self.costs, f"{self.y}_mean", f"{self.y}_std", "seconds_per_epoch", "best"])
        for row in self.rows:
            values = [as_text(row.settings[key]) for key in self.varied]
            std = "" if row.std is None else row.std
            costs = [row.number(key) for key in self.costs]
            table.writerow([*values, len(row.runs), *costs, row.mean, std, row.seconds_per_epoch, int(row.best)])
        return text.getvalue()

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table as a reader sees it: its head, and a list of texts per row."""
        rows = []
        for row in self.rows:
            values = [_short(row.settings[key]) for key in self.varied]
            costs = [f"{row.number(key):.3g}" for key in self.costs]
            rows.append([*values, str(len(row.runs)), *costs, in_words(row), f"{row.seconds_per_epoch:.3g}", "best" * row.best])
        return [*self.varied, "runs", *self.costs.values(), self.y, "s/epoch", ""], rows

    def markdown(self) -> str:
        head, rows = self.cells()
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for row, cells in zip(self.rows, rows, strict=True):
            lines.append("| " + " | ".join(f"**{cell}**" if row.best else cell for cell in cells) + " |")
        if self.unfinished:
            lines += ["", "Not completed:", ""]
            lines += [f"- `{run.directory.name}` {label(run, self.varied)}: {reason(run)}" for run in self.unfinished]
        return "\n".join(lines) + "\n"


def study(records: Iterable[Record], y: str = "test_accuracy") -> Study:
    """Fold runs into a study of `y`: a number of the summaries, or of the last lines of metrics.jsonl.

    Raises:
        UserError: a completed run has no such number.
    """
    records = list(records)
    completed = [record for record in records if record.status == "completed" and record.config]
    varied = varied_keys(completed)
    groups: dict[tuple, list[Record]] = {}
    for record in completed:
        values = settings(record)
        groups.setdefault(tuple(as_text(values.get(key)) for key in varied), []).append(record)
    rows = []
    for runs in groups.values():
        values = settings(runs[0])
        numbers = [number(run, y) for run in runs]
        std = statistics.stdev(numbers) if len(numbers) > 1 else None
        rows.append(Row({key: values.get(key) for key in varied}, runs, statistics.fmean(numbers), std))
    if rows:
        less = any(word in y for word in LESS_IS_BETTER)
        (min if less else max)(rows, key=lambda row: row.mean).best = True
    return Study(y, varied, rows, [record for record in records if record not in completed])


def varied_keys(records: list[Record]) -> list[str]:
    """The keys that tell the configurations of `records` apart: those set on the command line, then what else is needed."""
    configs = [settings(record) for record in records]
    keys = dict.fromkeys(key for config in configs for key in config if key not in NO_CONFIGURATION)
    several = [key for key in keys if len({as_text(config.get(key)) for config in configs}) > 1]
    asked = {part.lstrip("+~").partition("=")[0] for r in records for part in r.summary.get("overrides", [])}
    first = [key for key in several if key in asked]
    chosen = list(first)
    for key in sorted(several, key=lambda key: key.count(".")):
        if key not in chosen and _parts(configs, [*chosen, key]) > _parts(configs, chosen):
            chosen.append(key)
    return chosen


def settings(record: Record) -> dict[str, Any]:
    """The configuration of a run by dotted keys, and of each group its choice: {"optimizer": "counter_4bit", …}."""
    groups = {group: values["name"] for group, values in record.config.items() if isinstance(values, dict) and "name" in values}
    asked = dict(item.partition("=")[::2] for item in record.summary.get("overrides", []))
    return {group: asked.get(group, name) for group, name in groups.items()} | flat(record.config)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last part, as far as that is one key's alone; by its group where that is all it says."""
    last = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def _parts(configs: list[dict], keys: list[str]) -> int:
    return len({tuple(as_text(config.get(key)) for key in keys) for config in configs})


def number(run: Record, y: str) -> float:
    value = run.summary.get(y, run.epochs[-1].get(y) if run.epochs else None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        sources = (run.summary, *run.epochs[-1:])
        known = {key for source in sources for key, v in source.items() if type(v) in (int, float)}
        raise UserError(f"report.y={y}: {run.directory} has no such number\nallowed: {', '.join(sorted(known))}")
    return float(value)


def in_words(row: Row) -> str:
    """97.31 ± 0.12."""
    return f"{row.mean:.2f}" if row.std is None else f"{row.mean:.2f} ± {row.std:.2f}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def label(run: Record, keys: Iterable[str]) -> str:
    """What was asked for on the command line, else the values of `keys`."""
    values = settings(run)
    return " ".join(run.summary.get("overrides") or [f"{key}={as_text(values.get(key))}" for key in keys if values])


def reason(run: Record) -> str:
    """Why a run did not complete, in a line."""
    return f"{run.status}: {run.summary.get('error') or 'no more is known'}".replace("\n", "; ")
