"""The speeds that were measured on this machine, which `engine=auto` and `engine.precision=auto` read. Imports no torch.

`benchmark=machine` measures and keeps the steps of both engines. The first run that needs the speeds of products measures and
keeps them; `benchmark=machine` measures them anew.
"""

import importlib.metadata
import json
import platform
from contextlib import suppress
from functools import cache
from math import log2
from pathlib import Path
from typing import Any

from bnn_exp.config.paths import cache_root
from bnn_exp.errors import NotWritten
from bnn_exp.records.files import write_json


def place(device: str) -> Path:
    """Returns the file that keeps the speeds of steps on devices of type `device`, such as `cuda`."""
    return cache_root() / "engines" / f"{device}.json"


def place_of_products() -> Path:
    """Returns the file that keeps the speeds of products on a CPU, for each processor that shares the cache folder."""
    return cache_root() / "engines" / "products.json"


def faster(device: str, rule: str, hidden: int, batch: int) -> str | None:
    """Returns the engine that was faster in the measurements near these sizes; None if nothing was measured.

    The ratio of both engines' times is the weighted mean of the measured ratios, on a scale of logarithms. A weight falls with
    the fourth power of the distance, and the distance of two sizes is the difference of their logarithms.

    Args:
        device: the type of the device, such as `cuda`.
        rule: the gradient that the rule reads: `entries` of it, or the `whole`.
        hidden, batch: the hidden size of the network, and the batch size.
    """
    try:
        steps: list[dict[str, Any]] = json.loads(place(device).read_text())["steps"]
        near = [step for step in steps if step["rule"] == rule]
        weights = [(0.01 + log2(step["hidden"] / hidden) ** 2 + log2(step["batch"] / batch) ** 2) ** -2 for step in near]
        ratio = sum(w * log2(step["dense"] / step["packed"]) for w, step in zip(weights, near, strict=True))
        return ("packed" if ratio > 0 else "dense") if near else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no file, or not one of `benchmark=machine`


def products(kind: str) -> dict[str, float] | None:
    """Returns the seconds of a product in each precision, `fp32` and `bf16`; None if nothing was measured.

    Another processor or another version of torch needs another measurement.

    Args:
        kind: a key of `bnn_exp.training.precision.KINDS`.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = json.loads(place_of_products().read_text())[_library()][kind]
        return {name: float(found[name]) for name in ("fp32", "bf16")}
    return None


def keep_products(kind: str, seconds: dict[str, float]) -> None:
    """Keeps the `seconds` of a product in each precision. If the folder can't be written, nothing is kept."""
    kept: dict[str, Any] = {}
    of_machine: dict[str, Any] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = dict(json.loads(place_of_products().read_text()))
        of_machine = dict(kept[_library()])
    with suppress(OSError, NotWritten):
        place_of_products().parent.mkdir(parents=True, exist_ok=True)
        write_json(place_of_products(), {**kept, _library(): {**of_machine, kind: seconds}})


def _library() -> str:
    """Returns the name of this processor, its family and model, and the version of torch: they determine a product's speed."""
    about = [f"{key} {value}" for key in ("cpu family", "model") if (value := _first_core().get(key))]
    return ", ".join([processor(), *about, f"torch {importlib.metadata.version('torch')}"])


def processor() -> str:
    """Returns the name of this processor."""
    return _first_core().get("model name") or platform.processor() or platform.machine()


@cache
def _first_core() -> dict[str, str]:
    """Returns the facts that Linux tells about the first core; {} on another system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
