"""Evaluations of a run: a file for each network and each data set, so that none replaces another's. Imports no torch.

`evaluation.json` is of the run's own test rows by the network of its last epoch. All others lie in `evaluations/`, by the
name and the key of the data, the epoch (or the name of the file), and the fingerprint of the network. Each has a picture of its
mistakes beside it.
"""

import json
import re
from pathlib import Path
from typing import Any

from bnn_exp.records import runs
from bnn_exp.records.files import file_sha256
from bnn_exp.records.runs import Record

OWN = "evaluation.json"
ACCURACY = {"last": "test_accuracy", "best": "best_test_accuracy"}  # in summary.json, by the epoch of the network


def file_for(folder: Path, model: dict[str, Any], data: dict[str, Any], run: Path) -> Path:
    """Returns the file in `folder` for an evaluation of a `model` of `run` on `data`, both as the evaluation describes them."""
    if data["own"] and model["which"] == "last" and folder == run:
        return folder / OWN
    name = _plain(Path(data["path"]).name if data["path"] else data["name"]) or "data"
    return folder / "evaluations" / f"{name}-{data['key'][:8]}-{_plain(model['which'])}-{model['sha256'][:8]}.json"


def _plain(name: str) -> str:
    """Returns a name with only such signs as a file name may have everywhere."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:40]


def picture_of(file: Path) -> Path:
    """Returns the picture of the mistakes of an evaluation."""
    return file.with_name("mistakes.png") if file.name == OWN else file.with_suffix(".png")


def told(record: Record, which: str, rows: int) -> float | None:
    """Returns the accuracy (percent) that a run's summary has of its network on its own `rows` test rows; None where it has
    none, and of any other file.

    The summary of a run that was stopped tells of its last whole epoch, its last network may be a few steps further. One whose
    test was limited tells of fewer rows.
    """
    if which == "last" and record.status != "completed":
        return None
    if (record.setting("trainer.limit_eval") or rows) < rows:
        return None
    return record.summary.get(ACCURACY.get(which))


def disagreement(evaluation: dict[str, Any], folder: Path) -> str | None:
    """Returns two lines that say how an accuracy differs from the summary's; None where it does not. A row, or 0.1%, may be
    rounding on another processor."""
    expected, found, rows = evaluation["summary_accuracy"], evaluation["accuracy_float"], evaluation["rows"]
    if expected is None or abs(found - expected) <= max(100 / rows, 0.1) + 1e-9:
        return None
    return (
        f"{found:.2f}% of {rows:,} test rows are right here, {folder / 'summary.json'} says {expected:.2f}%\n"
        "the network that was loaded is not the one that was trained, or the run's files are of different runs"
    )


def read(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns the evaluations in a run directory with their file names, the run's own first, without damaged files."""
    found = []
    for file in (folder / OWN, *sorted((folder / "evaluations").glob("*.json"))):
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(value, dict) and "accuracy_float" in value:
            found.append((file.relative_to(folder).as_posix(), value))
    return found


def is_present(folder: Path, model: dict[str, Any]) -> bool:
    """Whether the `model` of an evaluation lies in the run directory `folder` now. It does not where the run went on since,
    or where it is another run's. One that an earlier version does not name counts as present."""
    if "sha256" not in model:
        return True
    which = model["which"]
    names = [name for name, epoch in runs.EPOCHS.items() if epoch == which] or [which, f"checkpoints/{which}"]
    return any(_holds(folder / name, model) for name in names if (folder / name).is_file())


def _holds(file: Path, model: dict[str, Any]) -> bool:
    """Whether `file` holds the network that an evaluation names."""
    if file.suffix == ".safetensors":
        try:
            return runs.metadata(file)["sha256"] == model["sha256"]
        except (OSError, ValueError, LookupError):  # damaged
            return False
    known = model.get("file_sha256")  # an earlier version does not write it, and model.safetensors tells of the last epoch
    return file_sha256(file) == known if known else model["which"] != "last"


def own_run(file: Path) -> Record | None:
    """Returns the run around a model file; None where there is none."""
    return runs.read(runs.run_of(file))
