"""Compiles the kernels of a run ahead, in a second process, while this process reads the data and imports torch.

The first run on a machine compiles some twenty kernels, which takes five seconds on one core. The second process compiles them
in the reverse order of their use (`bnn_exp.training.compile_ahead`), and leaves them in numba's cache on disk. This process
compiles the kernels that it needs first, and loads the others from the cache. Imports no torch.

When all kernels are in the cache, the second process writes a mark, and later runs of this kind start no such process.
"""

import atexit
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bnn_exp.config import installed
from bnn_exp.config.groups import Settings
from bnn_exp.config.paths import cache_root
from bnn_exp.errors import UserError
from bnn_exp.training import engine

KERNELS = Path(__file__).parents[1] / "bits/cpu/kernels"
PROGRAM = "import gc; gc.disable(); from bnn_exp.training.compile_ahead import main; main()"  # collections slow imports
SIZES = "hidden_size", "channels"
LEAST_IDLE = 0.25  # idle cores. With fewer, the second process would only slow this process down


def begin(settings: Settings, values: dict[str, Any]) -> subprocess.Popen | None:
    """Starts the process that compiles the kernels of a run on a CPU. The process ends with this process at the latest.

    Starts no process where a second process cannot shorten the start: without an idle core, or if torch is imported already. A
    run with plugins compiles its kernels itself.

    Args:
        values: the settings as plain values.

    Returns:
        The process; None if none was started.
    """
    if "torch" in sys.modules or installed.idle_cores() <= LEAST_IDLE or not _on_a_cpu(settings):
        return None
    if values.get("plugins") or settings.engine.memory == "lean" or (file := mark(settings)).exists():
        return None
    command = [sys.executable, "-c", PROGRAM, str(file)]
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, text=True)
    except OSError:  # no memory, or too many processes: the run compiles its kernels itself
        return None
    atexit.register(_end, process)
    with suppress(OSError), process.stdin as to_process:
        json.dump(values, to_process)
    return process


def mark(settings: Settings) -> Path:
    """Returns the file that exists once the cache holds all kernels of such a run: one for each machine and version."""
    files = [(file.name, file.stat().st_mtime_ns) for file in sorted(KERNELS.glob("*.py"))]
    versions = sys.version, importlib.metadata.version("numba"), platform.node(), str(KERNELS)
    key = json.dumps([files, versions, _kind(settings)])
    return cache_root() / "kernels" / hashlib.sha256(key.encode()).hexdigest()[:16]


def _kind(settings: Settings) -> list[Any]:
    """Returns the settings on which the choice of kernels depends. Strengths and sizes are left out."""
    groups = (asdict(group).items() for group in (settings.optimizer, settings.model, settings.engine))
    kind = [{key: value for key, value in group if not isinstance(value, float) and key not in SIZES} for group in groups]
    with suppress(UserError):  # raised again when the plan chooses the engine
        return [*kind, engine.choose(settings, "cpu")]
    return kind


def _on_a_cpu(settings: Settings) -> bool:
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and not installed.has_driver())
    return on_cpu and settings.engine.devices == 1


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
