"""Finds the settings in which runs differ. Imports no torch."""

import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from bnn_exp.records.runs import Record, as_text, flat

FOLDED = ("seed", "resume", "logger")  # runs that differ only in these keys count as one configuration
TWICE = "delta"  # the configuration holds this setting twice: here, and as optimizer.delta, which a run reads
CONTENT = "dataset.content"  # the first digits of the dataset's key, which tell apart other files under the same path


def settings(record: Record) -> dict[str, Any]:
    """Returns the settings of a run by dotted keys. Also contains the choice of each group ({"optimizer": "counter_4bit", …})
    and the first digits of the dataset's key."""
    return filled([record])[0]


def filled(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Returns the settings of each run, as `settings` describes them.

    Equal configurations have equal settings, whatever their command lines were.

    Runs of earlier versions lack new keys. If all runs that have such a key have the same value, the other runs get this value:
    it is probably the default.
    """
    configs = [_values(record) for record in records]
    for key in {key for config in configs for key in config}:
        having = [config for config in configs if key in config]
        if len(having) == len(configs) or len({as_text(config[key]) for config in having}) > 1:
            continue
        name = f"{key.partition('.')[0]}.name"
        choices = {as_text(config.get(name)) for config in having}
        for config in configs:
            if as_text(config.get(name)) in choices:
                config.setdefault(key, having[0][key])
    return _labelled(records, configs)


def _values(record: Record) -> dict[str, Any]:
    """Returns the settings of a run by dotted keys, and the first digits of the dataset's key. Equal numbers get one form: 10
    for 10.0."""
    values = {key: _plain(value) for key, value in flat(record.config).items()}
    if TWICE in values and "optimizer.name" in values:
        values[TWICE] = values.get(f"optimizer.{TWICE}")
    if "plugins" in values:  # plugins are identified by content, so a moved file is the same plugin
        used = [fact for fact in record.summary.get("plugins", []) if fact["plugin"] in values["plugins"]]
        values["plugins"] = ", ".join(f"{PurePosixPath(fact['plugin']).name} {fact['sha256'][:8]}" for fact in used)
    return values | ({CONTENT: record.summary["dataset"][:8]} if record.summary.get("dataset") else {})


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # lr=10 equals lr=10.0


def _labelled(records: Sequence[Record], configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns `configs`, the settings of `records`, with a label for each group: the choice that a command line names, else the
    name of the group's member.

    Runs with equal values of a group get one label: the first choice among their command lines.
    """
    labels: dict[tuple, str] = {}
    for record, config in zip(records, configs, strict=True):
        for group, choice in _choices(record).items():
            if f"{group}.name" in config:
                labels.setdefault(_of_group(config, group), choice)
    found = []
    for config in configs:
        groups = [key.removesuffix(".name") for key in config if key.count(".") == 1 and key.endswith(".name")]
        found.append({group: labels.get(_of_group(config, group), config[f"{group}.name"]) for group in groups} | config)
    return found


def _choices(record: Record) -> dict[str, str]:
    return dict(item.partition("=")[::2] for item in record.summary.get("overrides") or [])


def _of_group(config: dict[str, Any], group: str) -> tuple:
    return group, *sorted((key, as_text(value)) for key, value in config.items() if key.startswith(f"{group}."))


def varied_keys(records: Sequence[Record]) -> list[str]:
    """Returns keys that tell the configurations of runs apart: keys on the command lines first, then other keys as needed."""
    configs = filled(records)
    keys = dict.fromkeys(key for config in configs for key in config if key.partition(".")[0] not in FOLDED)
    several = [key for key in keys if len({as_text(config.get(key)) for config in configs}) > 1]
    asked = {part.lstrip("+~").partition("=")[0] for r in records for part in r.summary.get("overrides", [])}
    first = [key for key in several if key in asked and not (key == f"optimizer.{TWICE}" and {TWICE} <= asked & {*several})]
    chosen = list(first)
    for key in sorted(several, key=lambda key: key.count(".")):
        if key not in chosen and _parts(configs, [*chosen, key]) > _parts(configs, chosen):
            chosen.append(key)
    return chosen


def _parts(configs: list[dict], keys: list[str]) -> int:
    return len({tuple(as_text(config.get(key)) for key in keys) for config in configs})


def shortened(values: Sequence[Any]) -> list[Any]:
    """Returns `values` with absolute paths cut to the part after the folders that all paths share. Other values do
    not change."""
    paths = {value for value in values if isinstance(value, str) and value.startswith("/")}
    if len(paths) < 2:
        return list(values)
    shared = os.path.commonpath([PurePosixPath(path).parent for path in paths])
    return [PurePosixPath(value).relative_to(shared).as_posix() if value in paths else value for value in values]
