"""Reads the directories of runs, also of failed and unfinished runs. Imports no torch."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bnn_exp.config import command_line
from bnn_exp.config.migrate import migrated
from bnn_exp.records import metrics, summary

NOT_OF_A_RUN = ("sweep", "sweeper", "launcher", "report", "task", "from", "which", "min_accuracy")
MODEL_FILES = {"last": "model.safetensors", "best": "checkpoints/best.pt"}  # epoch of a network: its file in a run
EPOCHS = {file: which for which, file in MODEL_FILES.items()} | {"checkpoints/last.pt": "last"}


@dataclass(frozen=True)
class Record:
    """The content of a run directory. `config` is empty if the run could not begin; `summary` is empty if the run is under way
    or was killed."""

    directory: Path
    config: dict[str, Any]  # as in config.yaml
    summary: dict[str, Any]  # as in summary.json
    epochs: list[dict[str, Any]]  # the lines of metrics.jsonl

    @property
    def status(self) -> str:
        """The status of the run: completed, failed or interrupted; unfinished without a summary (under way or killed)."""
        return self.summary.get("status", "unfinished")

    def setting(self, key: str) -> Any:
        """Returns a value of the configuration by its dotted key; None if the key is missing."""
        value = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read(directory: Path) -> Record | None:
    """Returns the content of the run directory `directory`; None if it holds no run."""
    ended, file = summary.read(directory), directory / "config.yaml"
    if ended is None and not file.is_file():
        return None
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    except Exception:  # a damaged file: the exceptions of YAML and OmegaConf have no common base class
        values = {}
    return Record(
        directory, migrated(values) if isinstance(values, dict) else {}, ended or {}, metrics.read(directory / "metrics.jsonl")
    )


def find(places: Iterable[Path]) -> Iterator[Record]:
    """Yields every run in `places` and in the folders below, each run once, sorted by name within a place (2 before 10)."""
    seen = set()
    for place in places:
        files = (file for name in ("config.yaml", "summary.json") for file in place.rglob(name))
        # The logger wandb writes files with these names too, which are no runs.
        folders = {file.parent for file in files if "wandb" not in file.relative_to(place).parts}
        for directory in sorted(folders, key=_natural):
            record = None if directory.resolve() in seen else read(directory)
            if record is not None:
                seen.add(directory.resolve())
                yield record


def own_overrides(overrides: Iterable[str], plugins: Iterable[str] = ()) -> list[str]:
    """Returns the overrides that a run needs by itself, without overrides for its sweep or for other tasks.

    Args:
        overrides: the overrides of the run, as its summary has them.
        plugins: the plugins of the run. They are added if no override names plugins or a run, because a program that
            registers something does not name them on its command line.
    """
    own = [item for item in overrides if item.lstrip("+~").partition("=")[0].partition(".")[0] not in NOT_OF_A_RUN]
    named = {"plugins", "config", "init_from"} & command_line.keys(own).keys()
    return own if named or not plugins else [*own, command_line.override("plugins", plugins)]


def run_of(file: Path) -> Path:
    """Returns the run directory of a model file or a checkpoint."""
    folder = file.parent
    if folder.absolute().name != "checkpoints":
        return folder
    return folder.parent if folder.name else folder.absolute().parent


def which_of(file: Path) -> str:
    """Returns the epoch of a model file or a checkpoint, from its place in a run: `last` or `best`. For another file, returns
    the file name."""
    return EPOCHS.get(file.absolute().relative_to(run_of(file).absolute()).as_posix(), file.name)


def metadata(file: Path) -> dict[str, str]:
    """Returns the metadata of a `model.safetensors` without reading its tensors.

    Raises:
        OSError, ValueError, LookupError: the file is missing or damaged.
    """
    with file.open("rb") as stream:
        header = json.loads(stream.read(min(int.from_bytes(stream.read(8), "little"), file.stat().st_size)))
    return header["__metadata__"]


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in path.parts]


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested configuration by dotted keys, such as {"model.name": "mlp"} for {"model": {"name": "mlp"}}.

    `prefix` stands before every key.
    """
    items: dict[str, Any] = {}
    for key, value in config.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return items


def as_text(value: Any) -> str:
    """Returns a value as the command line writes it, such as null, true, 0.1, [16,32] or mlp."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
