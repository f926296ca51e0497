"""Reads configurations that earlier versions wrote: a setting that has moved is put where it is now. Imports no torch."""

from collections.abc import Mapping
from typing import Any

MOVED = {  # a dotted key of an earlier version, and the key that took its place
    "trainer.engine": "engine",
    "trainer.error_bits": "engine.gradient_bits",
    "benchmark.seed_program": "benchmark.reference_program",
    **{
        f"trainer.{name}": f"engine.{name}"
        for name in ("precision", "compile", "graphs", "memory", "threads", "devices", "sync_batch_norm", "all_reduce")
    },
}


def migrated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the plain values of a saved configuration under the keys of this version; `config` itself stays as it is."""
    values = dict(config)
    if not isinstance(trainer := values.get("trainer"), dict) or "engine" not in trainer:
        return values
    old = {name: value for name, value in trainer.items() if f"trainer.{name}" in MOVED}
    engine = {"name": old.pop("engine")} | {MOVED[f"trainer.{name}"].removeprefix("engine."): old[name] for name in old}
    kept = {name: value for name, value in trainer.items() if f"trainer.{name}" not in MOVED}
    return values | {"trainer": kept, "engine": engine}
