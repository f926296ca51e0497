"""Finds the one network that an override names. For a folder of several runs, the error message suggests the best run.

Imports no torch.
"""

from pathlib import Path

from bnn_exp.config import zoo
from bnn_exp.errors import UserError
from bnn_exp.records.runs import MODEL_FILES, find
from bnn_exp.records.sweeps.comparison import compare

SHOWN = 5  # largest number of runs that a message lists


def model_file(place: Path, which: str) -> Path:
    """Returns the file of a trained network in the run directory `place`. If `place` is a file, returns it.

    Args:
        which: `last` or `best`, the epoch of the network.

    Raises:
        UserError: the file is missing, or `place` is a file of another epoch.
    """
    if place.is_file():
        if which == "best" and place.name != "best.pt":
            raise UserError(
                f"which=best: from={place} is a file\nallowed: from=RUN which=best, or from=RUN/{MODEL_FILES['best']}"
            )
        return place
    folder = zoo.located(place, "from")
    file = folder / MODEL_FILES[which]
    if file.is_file():
        return file
    if zoo.holds(file):
        raise UserError(f"which={which}: from={place} has one network\nallowed: from={place} without which")
    others = [name for name in (*MODEL_FILES.values(), "checkpoints/last.pt") if (place / name).is_file()]
    if others:
        raise UserError(f"from={place}: it has no {MODEL_FILES[which]}\nallowed: from={place / others[0]}")
    if several := of_several("from", place):
        raise UserError(several)
    problem = "no trained network in it" if place.is_dir() else "no such run"
    raise UserError(f"from={place}: {problem}\nallowed: a run directory, its model.safetensors, or a file of its checkpoints/")


def of_several(key: str, place: Path) -> str:
    """Returns an error message for the folder `place` of several runs, since the setting `key` needs one run. The message names
    the best run first. Returns "" if no run lies below `place`."""
    found = [run.directory for run in find([place])] if place.is_dir() else []
    if not found:
        return ""
    best = compare(find([place])).best
    first, *others = dict.fromkeys([*([best.runs[0].directory] if best else []), *found])
    more = f"; or {', '.join(map(str, others[:SHOWN]))}{', …' * (len(others) > SHOWN)}" if others else ""
    kind = "a sweep" if (place / "multirun.yaml").is_file() else "a folder"
    return (
        f"{key}={place}: {kind} of {len(found)} run{'s' * (len(found) > 1)}, and no run\n"
        f"allowed: {key}={first}{', the best' * bool(best)}{more}"
    )
