"""The evaluations on the HTML page of a run: one row per evaluation, and the mistakes on the run's own test rows."""

from pathlib import Path
from typing import Any

from bnn_exp.records import evaluations
from bnn_exp.records.html import data_uris

SHOWN = 64  # largest number of mistakes in the table
ABSENT = " (not in the run now)"


def evaluated(directory: Path) -> dict[str, Any]:
    """Returns the variables of the page's template about the evaluations in a run directory.

    Returns:
        `evaluations` and `mistakes` (rows of texts), `wrong` (the image of the mistakes, or None), and `evaluation_files` (file
        names). Only the network that the run holds now counts for the mistakes.
    """
    found = [
        (name, value, evaluations.is_present(directory, value.get("model", {}))) for name, value in evaluations.read(directory)
    ]
    own = next((value for name, value, present in found if name == evaluations.OWN and present), {})
    return {
        "evaluations": [_row(*one) for one in found],
        "mistakes": [_mistake(mistake) for mistake in own.get("mistakes", [])[:SHOWN]],
        "wrong": data_uris.embedded(evaluations.picture_of(directory / evaluations.OWN)) if own else None,
        "evaluation_files": [name for name, *_ in found],
    }


def _row(name: str, value: dict[str, Any], present: bool) -> list[str]:
    model, data = value.get("model", {}), value.get("data", {})  # files of earlier versions have neither key
    packed = value.get("accuracy_packed")
    return [
        str(data.get("path") or data.get("name") or "—"),
        model.get("which", "last") + ("" if present else ABSENT),
        f"{value['rows']:,}",
        f"{value['accuracy_float']:.2f}",
        "—" if packed is None else f"{packed:.2f}",
        name,
    ]


def _mistake(mistake: dict[str, Any]) -> list[str]:
    return [mistake["name"], mistake["class"], mistake["answer"], f"{100 * mistake['probability']:.1f}"]
