"""Measures the memory of a training, each way in a process of its own that takes a job on standard input.

What counts is the network, its optimizers and three steps on whole batches: the greatest number of bytes at any moment of that,
beyond what the process had before. It had, alike in every way, Python with torch and this package, the data (as that way keeps
them), and a training of a tiny network of the same kind behind it, so that the compiler of the kernels (LLVM, about 110 MB) and
what torch loads at its first step are there; what that left free was given back.

On a CPU these are resident bytes, by the system's own high-water mark or, where that can't be set back, by looking every
millisecond; on a GPU those of torch's allocator. A run of ours keeps freed memory (`training.memory`), which counts; the
loops of plain torch have the allocator as it comes.
"""

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch

from bnn_exp.commands.benchmark import ways
from bnn_exp.commands.benchmark.times import batch_size, whole_batches
from bnn_exp.config import plugins
from bnn_exp.config.settings import Settings, load_settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.errors import UserError
from bnn_exp.training import plan
from bnn_exp.training.setup import load, settle

STEPS = 3
PROCESSES = 3  # of each way
WARM_ROWS, WARM_WIDTH, WARM_CHANNELS = 1024, 64, 8  # of the tiny training, at most


def measure(name: str, values: dict, device: str, done: Callable[[int], None] = lambda count: None) -> dict | None:
    """The bytes of one way, in processes of its own, the one with the median peak; None where there is nothing to tell them.

    Args:
        name: of the way, see `bnn_exp.commands.benchmark.ways`.
        values: the configuration, plain.
        done: is told of each process that has ended.

    Returns:
        `before`; `built`: with network and optimizers, beyond `before`; `peak_bytes`: at the peak, beyond `before`;
        `total_bytes`: of the process, at the peak; `peaks`: `peak_bytes` of every process, ascending. They differ, as memory
        falls into pieces in another way each time.

    Raises:
        UserError: a process failed.
    """
    if device == "cpu" and not Path("/proc/self/status").exists():
        return None
    found = []
    for _ in range(PROCESSES):
        found.append(_in_a_process(name, values, device))
        done(1)
    found.sort(key=lambda sizes: sizes["peak_bytes"])
    return found[PROCESSES // 2] | {"peaks": [sizes["peak_bytes"] for sizes in found]}


def _in_a_process(name: str, values: dict, device: str) -> dict[str, int]:
    job = json.dumps({"way": name, "config": values, "device": device})
    done = subprocess.run(
        [sys.executable, "-m", "bnn_exp.commands.benchmark.memory"], input=job, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"the process that measures the memory of {name} failed: {last}")
    return json.loads(done.stdout)


def of_this_process(name: str, settings: Settings, device: torch.device) -> dict[str, int]:
    """What `measure` gives but for `peaks`, in this process."""
    if name in ways.ENGINES:
        settle(settings, device)
    else:
        torch.set_num_threads(settings.engine.threads)
    data = ways.data_for(name, load(settings, plan.read(settings.dataset), device))
    _train(name, tiny(settings), data, steps=2)
    watch = watching(device)
    before = watch.now()
    built = _train(name, settings, data, STEPS, watch)
    peak = watch.peak()
    return {"before": before, "built": built - before, "peak_bytes": peak - before, "total_bytes": peak}


def _train(name: str, settings: Settings, data: Dataset, steps: int, watch: "Watch | None" = None) -> int:
    """Build that way and train so many steps; the bytes when it was built."""
    step = ways.first_step(name, settings, data)
    built = watch.now() if watch else 0
    for rows in islice(whole_batches(data, batch_size(settings, data)), steps):
        step(rows)
    return built


def tiny(settings: Settings) -> Settings:
    """The same training with few rows, of a network as deep but narrow."""
    model = settings.model
    if isinstance(getattr(model, "hidden_size", None), int):
        model = replace(model, hidden_size=min(model.hidden_size, WARM_WIDTH))
    if isinstance(getattr(model, "channels", None), tuple):
        model = replace(model, channels=tuple(min(width, WARM_CHANNELS) for width in model.channels))
    trainer = replace(settings.trainer, batch_size=min(settings.trainer.batch_size, WARM_ROWS))
    return replace(settings, model=model, trainer=trainer)


class Watch(Protocol):
    """Bytes from now on."""

    def now(self) -> int: ...

    def peak(self) -> int: ...


def watching(device: torch.device) -> Watch:
    """A watch that begins now, when all that is free has been given back."""
    gc.collect()
    if device.type == "cuda":
        return Allocated(device)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back (man 5 proc)
    except OSError:
        return Sampled()
    return Resident()


class Resident:
    """Resident bytes of this process, by Linux's high-water mark."""

    def now(self) -> int:
        return _status("VmRSS")

    def peak(self) -> int:
        return _status("VmHWM")


class Sampled:
    """Resident bytes of this process, looked at every millisecond."""

    def __init__(self) -> None:
        self._highest = self.now()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self._highest = max(self._highest, self.now())
            time.sleep(1e-3)

    def now(self) -> int:
        return _status("VmRSS")

    def peak(self) -> int:
        return max(self._highest, self.now())


class Allocated:
    """Bytes of tensors on a GPU, by torch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)

    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)


def _status(what: str) -> int:
    with Path("/proc/self/status").open() as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(what))


if __name__ == "__main__":
    job = json.load(sys.stdin)
    plugins.load(job["config"].get("plugins"))
    print(json.dumps(of_this_process(job["way"], load_settings(job["config"]), torch.device(job["device"]))))
