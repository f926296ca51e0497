"""The files of evaluations: one file per network and dataset, so no evaluation overwrites another. Imports no torch.

`evaluation.json` holds the evaluation of the last epoch's network on the run's own test rows. All other
evaluations lie in `evaluations/`. Their file names contain the dataset's name and key, the epoch (or the file name) of the
network, and the network's fingerprint. An image of the mistakes lies beside each file.
"""

import json
import re
from pathlib import Path
from typing import Any

from bnn_exp.records import runs
from bnn_exp.records.files import file_sha256
from bnn_exp.records.runs import Record

OWN = "evaluation.json"
# Epoch of the network: the key of its accuracy in summary.json.
ACCURACY = {"last": "test_accuracy", "best": "best_test_accuracy"}


def file_for(folder: Path, model: dict[str, Any], data: dict[str, Any], run: Path) -> Path:
    """Returns the path of the JSON file for an evaluation.

    Args:
        folder: the directory of the results.
        model, data: the network and the dataset, as the dictionaries `model` and `data` of an evaluation describe them.
        run: the directory of the network's run.
    """
    if data["own"] and model["which"] == "last" and folder == run:
        return folder / OWN
    name = _plain(Path(data["path"]).name if data["path"] else data["name"]) or "data"
    return folder / "evaluations" / f"{name}-{data['key'][:8]}-{_plain(model['which'])}-{model['sha256'][:8]}.json"


def _plain(name: str) -> str:
    """Returns `name` without characters that some file system refuses, shortened to 40 characters."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:40]


def picture_of(file: Path) -> Path:
    """Returns the image file that shows the mistakes of the evaluation in `file`."""
    return file.with_name("mistakes.png") if file.name == OWN else file.with_suffix(".png")


def summary_accuracy(record: Record, which: str, rows: int) -> float | None:
    """Returns the test accuracy (percent) that the summary of a run states for a network; None without a comparable accuracy.

    The summary of a stopped run describes the last whole epoch, but its last network may be a few steps further. The summary
    of a run with a limited test describes fewer rows.

    Args:
        which: the epoch of the network, `last` or `best`, or a file name.
        rows: the number of test rows of the evaluation.
    """
    if which == "last" and record.status != "completed":
        return None
    if (record.setting("trainer.limit_eval") or rows) < rows:
        return None
    return record.summary.get(ACCURACY.get(which))


def disagreement(evaluation: dict[str, Any], folder: Path) -> str | None:
    """Returns two lines that say how the accuracy of an evaluation differs from the accuracy in the run's summary.

    None if the accuracies agree, up to one row or 0.1%: another processor rounds differently. `folder` is the directory of the
    run.
    """
    expected, found, rows = evaluation["summary_accuracy"], evaluation["accuracy_float"], evaluation["rows"]
    if expected is None or abs(found - expected) <= max(100 / rows, 0.1) + 1e-9:
        return None
    return (
        f"{found:.2f}% of {rows:,} test rows are right here, {folder / 'summary.json'} says {expected:.2f}%\n"
        "the network that was loaded is not the one that was trained, or the run's files are of different runs"
    )


def read(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns (file name, content) of each evaluation in a run directory, `evaluation.json` first. Skips damaged files."""
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
    """Returns True if the run directory `folder` still holds an evaluated network, which `model` describes.

    The directory lacks the network if the run went on, or if the network belongs to another run. Evaluations of an earlier
    version do not name their network, which then counts as present.
    """
    if "sha256" not in model:
        return True
    which = model["which"]
    names = [name for name, epoch in runs.EPOCHS.items() if epoch == which] or [which, f"checkpoints/{which}"]
    return any(_holds(folder / name, model) for name in names if (folder / name).is_file())


def _holds(file: Path, model: dict[str, Any]) -> bool:
    """Returns True if `file` holds the network that `model`, the part of an evaluation, describes."""
    if file.suffix == ".safetensors":
        try:
            return runs.metadata(file)["sha256"] == model["sha256"]
        except (OSError, ValueError, LookupError):  # the file is damaged
            return False
    known = model.get("file_sha256")  # earlier versions did not write this key
    return file_sha256(file) == known if known else model["which"] != "last"


def own_run(file: Path) -> Record | None:
    """Returns the run to which the model file `file` belongs; None if the file lies outside of a run."""
    return runs.read(runs.run_of(file))
