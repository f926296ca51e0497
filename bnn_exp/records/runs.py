"""Run directories read back: what a study is made of, whoever ran it and however it ended. Imports no torch."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bnn_exp.config import command_line
from bnn_exp.config.migrate import migrated
from bnn_exp.errors import UserError
from bnn_exp.records import metrics, summary

NOT_OF_A_RUN = ("sweep", "sweeper", "launcher", "report", "task", "from", "which", "min_accuracy")
MODELS = {"last": "model.safetensors", "best": "checkpoints/best.pt"}  # by the epoch that they hold
SHOWN = 5  # runs of a folder in a message
EPOCHS = {file: which for which, file in MODELS.items()} | {"checkpoints/last.pt": "last"}


@dataclass(frozen=True)
class Record:
    """A run directory as it stands. A run that could not begin has no `config`; one under way, or killed, no `summary`."""

    directory: Path
    config: dict[str, Any]  # as in config.yaml
    summary: dict[str, Any]  # as in summary.json
    epochs: list[dict[str, Any]]  # the lines of metrics.jsonl

    @property
    def status(self) -> str:
        """completed, failed or interrupted; unfinished where no summary says so (under way, or killed)."""
        return self.summary.get("status", "unfinished")

    def setting(self, key: str) -> Any:
        """A value of the configuration by its dotted key; None where there is none."""
        value = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read(directory: Path) -> Record | None:
    """The run in `directory`; None where there is none."""
    ended, file = summary.read(directory), directory / "config.yaml"
    if ended is None and not file.is_file():
        return None
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    except Exception:  # a damaged file: YAML's and OmegaConf's errors have no common base
        values = {}
    return Record(
        directory, migrated(values) if isinstance(values, dict) else {}, ended or {}, metrics.read(directory / "metrics.jsonl")
    )


def find(places: Iterable[Path]) -> Iterator[Record]:
    """Every run in `places` and in the folders below them, each once, in the order of their names (2 before 10)."""
    seen = set()
    for place in places:
        files = (file for name in ("config.yaml", "summary.json") for file in place.rglob(name))
        folders = {file.parent for file in files if "wandb" not in file.relative_to(place).parts}  # which has such names too
        for directory in sorted(folders, key=_natural):
            record = None if directory.resolve() in seen else read(directory)
            if record is not None:
                seen.add(directory.resolve())
                yield record


def own_overrides(overrides: Iterable[str], plugins: Iterable[str] = ()) -> list[str]:
    """The overrides of a command line that its run alone needs: not those of the sweep that it is part of.

    Args:
        plugins: those of the run, which the command line of a program that registers something does not say.
    """
    own = [item for item in overrides if item.lstrip("+~").partition("=")[0].partition(".")[0] not in NOT_OF_A_RUN]
    named = {"plugins", "config", "init_from"} & command_line.keys(own).keys()
    return own if named or not plugins else [*own, command_line.override("plugins", plugins)]


def model_file(place: Path, which: str) -> Path:
    """The file of a trained network: of the run `place` that of its last or its best epoch; or `place` itself, a file.

    Raises:
        UserError: there is none, or `place` is a file of another epoch.
    """
    if place.is_file():
        if which == "best" and place.name != "best.pt":
            raise UserError(f"which=best: from={place} is a file\nallowed: from=RUN which=best, or from=RUN/{MODELS['best']}")
        return place
    file = place / MODELS[which]
    if file.is_file():
        return file
    others = [name for name in (*MODELS.values(), "checkpoints/last.pt") if (place / name).is_file()]
    if others:
        raise UserError(f"from={place}: it has no {MODELS[which]}\nallowed: from={place / others[0]}")
    if several := of_several("from", place):
        raise UserError(several)
    problem = "no trained network in it" if place.is_dir() else "no such run"
    raise UserError(f"from={place}: {problem}\nallowed: a run directory, its model.safetensors, or a file of its checkpoints/")


def of_several(key: str, place: Path) -> str:
    """Says of a sweep, or of another folder of runs, that `key` needs one of them, the best first; "" where no run is below."""
    found = [run.directory for run in find([place])] if place.is_dir() else []
    if not found:
        return ""
    from bnn_exp.records.sweeps.comparison import compare

    best = compare(find([place])).best
    first, *others = dict.fromkeys([*([best.runs[0].directory] if best else []), *found])
    more = f"; or {', '.join(map(str, others[:SHOWN]))}{', …' * (len(others) > SHOWN)}" if others else ""
    kind = "a sweep" if (place / "multirun.yaml").is_file() else "a folder"
    return (
        f"{key}={place}: {kind} of {len(found)} run{'s' * (len(found) > 1)}, and no run\n"
        f"allowed: {key}={first}{', the best' * bool(best)}{more}"
    )


def run_of(file: Path) -> Path:
    """The run directory of a model file or a checkpoint."""
    folder = file.parent
    if folder.absolute().name != "checkpoints":
        return folder
    return folder.parent if folder.name else folder.absolute().parent


def which_of(file: Path) -> str:
    """Returns the epoch of a model file or a checkpoint, `last` or `best`, by its place in a run. A file that a run does not
    write, a kept or a copied one, goes by its own name."""
    return EPOCHS.get(file.absolute().relative_to(run_of(file).absolute()).as_posix(), file.name)


def metadata(file: Path) -> dict[str, str]:
    """Returns the metadata of a `model.safetensors`, without its tensors.

    Raises:
        OSError, ValueError, LookupError: the file is not there, or damaged.
    """
    with file.open("rb") as stream:
        header = json.loads(stream.read(min(int.from_bytes(stream.read(8), "little"), file.stat().st_size)))
    return header["__metadata__"]


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in path.parts]


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"name": "mlp"}} → {"model.name": "mlp"}."""
    items: dict[str, Any] = {}
    for key, value in config.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return items


def as_text(value: Any) -> str:
    """A value as the command line takes it: null, true, 0.1, [16,32], mlp."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
