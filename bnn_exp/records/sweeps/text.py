"""Returns short texts about runs, for tables, charts and pages of sweeps."""

from collections.abc import Iterable, Sequence

from bnn_exp.records.runs import Record, as_text
from bnn_exp.records.sweeps.varied_settings import settings


def mean_and_deviation(mean: float, std: float | None) -> str:
    """Returns a mean with its standard deviation, such as 97.31 ± 0.12; without the deviation if `std` is None."""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Returns a short name for each key: the last part of the key if no other key has this last part, else the whole key. The
    short name of `model.name` is `model`."""
    last = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def label(run: Record, keys: Iterable[str]) -> str:
    """Returns the overrides of a run's command line as text. Without overrides, returns the values of the settings `keys`."""
    values = settings(run)
    return " ".join(run.summary.get("overrides") or [f"{key}={as_text(values.get(key))}" for key in keys if values])


def reason(run: Record) -> str:
    """Returns one line about why a run did not complete: its error, else the number of completed epochs."""
    error = run.summary.get("error")
    if error and run.status == "failed":
        return f"failed: {error}".replace("\n", "; ")
    done, total = len(run.epochs), run.setting("trainer.epochs")
    how_far = f"after {done}{f' of {total}' if total else ''} epochs" if run.config else "before it began"
    return f"{run.status} {how_far}{' (under way, or killed)' * (run.status == 'unfinished')}"
