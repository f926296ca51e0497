"""Converts configurations that earlier versions wrote to the keys of this version. Imports no torch."""

from collections.abc import Mapping
from typing import Any

MOVED = {  # dotted key of an earlier version: the key in this version
    "trainer.engine": "engine",
    "trainer.error_bits": "engine.gradient_bits",
    "benchmark.seed_program": "benchmark.reference_program",
    **{
        f"trainer.{name}": f"engine.{name}"
        for name in ("precision", "compile", "graphs", "memory", "threads", "devices", "sync_batch_norm", "all_reduce")
    },
}


def migrated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the plain values of a saved configuration under the keys of this version. Leaves `config` unchanged."""
    values = dict(config)
    if not isinstance(trainer := values.get("trainer"), dict) or "engine" not in trainer:
        return values
    old = {name: value for name, value in trainer.items() if f"trainer.{name}" in MOVED}
    engine = {"name": old.pop("engine")} | {MOVED[f"trainer.{name}"].removeprefix("engine."): old[name] for name in old}
    kept = {name: value for name, value in trainer.items() if f"trainer.{name}" not in MOVED}
    return values | {"trainer": kept, "engine": engine}
