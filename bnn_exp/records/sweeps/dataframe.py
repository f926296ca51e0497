"""Reads runs as a tidy pandas table: one row per number and epoch. Imports no torch."""

from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnn_exp.config.paths import at_home
from bnn_exp.errors import UserError
from bnn_exp.records import runs
from bnn_exp.records.runs import Record, as_text
from bnn_exp.records.sweeps.varied_settings import filled, varied_keys

if TYPE_CHECKING:
    from pandas import DataFrame

Paths = str | Path | Iterable[str | Path]
COLUMNS = ("epoch", "tensor", "metric", "value")


def load_runs(paths: Paths, settings: Iterable[str] | None = None) -> "DataFrame":
    """Returns the epochs of runs as a pandas DataFrame, with one row per run, epoch, tensor and metric.

    Columns:
        run: the directory, as text.
        status: completed, failed, interrupted or unfinished.
        seed: int.
        one column per setting, named by its dotted key (`model.hidden_size`). `optimizer` holds the choice of the group.
        epoch: int, from 1.
        tensor: the name in the state dict (`layers.0.weight`); None for a number of the whole network.
        metric: a name of metrics.jsonl.
        value: float. A missing number (null) has no row.

    Args:
        paths: directories of runs or sweeps, folders of them, patterns such as "outputs/*/*", or a list of these.
        settings: the keys of the settings that become columns; None for the settings that differ between the runs.

    Raises:
        UserError: `paths` hold no run, or no run has one of the `settings`.
    """
    import pandas as pd

    records = [record for record in runs.find(_places(paths)) if record.config]
    if not records:
        raise UserError(f"{_shown(paths)}: no run there\nallowed: directories of runs or sweeps, or a pattern of them")
    values = filled(records)
    keys = varied_keys(records) if settings is None else list(settings)
    for key in keys:
        if not any(key in config for config in values):
            raise UserError(f"settings={key}: no run has it\nallowed: {', '.join(sorted(set().union(*values)))}")
    rows = [
        (str(record.directory), record.status, record.setting("seed"), *(_plain(config.get(key)) for key in keys), *row)
        for record, config in zip(records, values, strict=True)
        for row in _rows(record)
    ]
    table = pd.DataFrame(rows, columns=["run", "status", "seed", *keys, *COLUMNS])
    return table.astype({"epoch": "int64", "value": "float64"}).astype({"tensor": object, "metric": str})


def _places(paths: Paths) -> list[Path]:
    """Returns the directories that `paths` name or match. A file stands for the directory of its run."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found: list[Path] = []
    for path in given:
        there = Path(at_home(str(path)))
        # Not Path.glob, which takes no absolute pattern.
        found += [there] if there.exists() else map(Path, sorted(glob(str(there), recursive=True)))  # noqa: PTH207
    return [place if place.is_dir() else runs.run_of(place) for place in found]


def _rows(record: Record) -> Iterator[tuple[int, str | None, str, float]]:
    for metrics in record.epochs:
        for metric, value in metrics.items():
            for tensor, number in value.items() if isinstance(value, dict) else ((None, value),):
                if metric != "epoch" and isinstance(number, int | float):
                    yield metrics["epoch"], _tensor(metric, tensor), metric, number


def _tensor(metric: str, name: str | None) -> str | None:
    """Returns the tensor name for `name` in metrics.jsonl. In earlier versions the names of `dead_outputs` were layers."""
    return f"{name}.weight" if metric == "dead_outputs" and name and not name.endswith("weight") else name


def _plain(value: Any) -> Any:
    """Returns the value of a setting for a table cell. Lists and dictionaries become text."""
    return as_text(value) if isinstance(value, list | dict) else value


def _shown(paths: Paths) -> str:
    return str(paths) if isinstance(paths, str | Path) else ",".join(map(str, paths))
