"""Settings that tell the configurations of runs apart. Imports no torch."""

import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from bnn_exp.records.runs import Record, as_text, flat

FOLDED = ("seed", "resume", "logger")  # with what is below them: they tell runs apart, and no configurations
CONTENT = "dataset.content"  # the first digits of the key of the data: other files under the same path are other data


def settings(record: Record) -> dict[str, Any]:
    """Returns the configuration of a run by dotted keys, the choice of each group ({"optimizer": "counter_4bit", …}), and the
    content of its data."""
    groups = {group: values["name"] for group, values in record.config.items() if isinstance(values, dict) and "name" in values}
    asked = dict(item.partition("=")[::2] for item in record.summary.get("overrides", []))
    content = {CONTENT: record.summary["dataset"][:8]} if record.summary.get("dataset") else {}
    return {group: asked.get(group, name) for group, name in groups.items()} | flat(record.config) | content


def filled(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Returns the settings of runs. Runs of an earlier version lack new keys: a key that has one value in all other runs gets
    this value, which is its default as far as they tell."""
    configs = [settings(record) for record in records]
    for key in {key for config in configs for key in config}:
        having = [config for config in configs if key in config]
        if len(having) == len(configs) or len({as_text(config[key]) for config in having}) > 1:
            continue
        group = key.partition(".")[0] if "." in key else ""
        choices = {as_text(config.get(group)) for config in having}
        for config in configs:
            if as_text(config.get(group)) in choices:
                config.setdefault(key, having[0][key])
    return configs


def varied_keys(records: Sequence[Record]) -> list[str]:
    """Returns the keys that tell configurations apart: those set on the command line, then what else is needed."""
    configs = filled(records)
    keys = dict.fromkeys(key for config in configs for key in config if key.partition(".")[0] not in FOLDED)
    several = [key for key in keys if len({as_text(config.get(key)) for config in configs}) > 1]
    asked = {part.lstrip("+~").partition("=")[0] for r in records for part in r.summary.get("overrides", [])}
    first = [key for key in several if key in asked]
    chosen = list(first)
    for key in sorted(several, key=lambda key: key.count(".")):
        if key not in chosen and _parts(configs, [*chosen, key]) > _parts(configs, chosen):
            chosen.append(key)
    return chosen


def _parts(configs: list[dict], keys: list[str]) -> int:
    return len({tuple(as_text(config.get(key)) for key in keys) for config in configs})


def shortened(values: Sequence[Any]) -> list[Any]:
    """Returns absolute paths among `values` without the folders that all of them share; other values as they are."""
    paths = {value for value in values if isinstance(value, str) and value.startswith("/")}
    if len(paths) < 2:
        return list(values)
    shared = os.path.commonpath([PurePosixPath(path).parent for path in paths])
    return [PurePosixPath(value).relative_to(shared).as_posix() if value in paths else value for value in values]
