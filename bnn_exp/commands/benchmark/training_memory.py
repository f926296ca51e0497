"""Measures the memory of a training. Each way trains in a process of its own, which reads its job from standard input.

The result is the greatest number of bytes during the training, less the bytes before the training. It covers the network, its
optimizers and three steps on whole batches. Before the training, every process already holds Python with torch and this
package, and the data in the form that the way needs. The process has also trained a tiny network of the same kind. So the
compiler of the kernels (LLVM, about 110 MB) and everything that torch loads at its first step are present. Memory that the
tiny training freed is returned to the system.

On a CPU the bytes are resident bytes: the peak that the system records. If the system can't reset this peak, the bytes are
sampled every millisecond. On a GPU torch's allocator counts the bytes. Freed memory that our engines keep (`training.memory`)
counts too. The loops of plain torch have the allocator in its default state.
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
from itertools import islice
from typing import Protocol

import torch

from bnn_exp.commands.benchmark import process_memory, training_ways
from bnn_exp.commands.benchmark.training_times import batch_size, whole_batches
from bnn_exp.config import plugins
from bnn_exp.config.settings import Settings, load_settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.errors import UserError
from bnn_exp.training import plan
from bnn_exp.training.precision import settled
from bnn_exp.training.setup import load, settle
from bnn_exp.training.tiny import tiny

STEPS = 3
PROCESSES = 3  # the number of processes that measure each way of training


def measure(name: str, values: dict, device: str, done: Callable[[int], None] = lambda count: None) -> dict | None:
    """Measures the bytes of one way in several processes, and returns the bytes of the process with the median peak.

    Args:
        name: the name of the way, see `training_ways`.
        values: the plain values of the configuration.
        done: a function that is called with 1 when a process has ended.

    Returns:
        None if the system does not report memory, else

        - `before`: the bytes of the process before the training;
        - `built`: the bytes of the network and its optimizers, beyond `before`;
        - `peak_bytes`: the bytes at the peak, beyond `before`;
        - `total_bytes`: the bytes of the process at the peak;
        - `peaks`: `peak_bytes` of all processes, ascending. The peaks differ, since memory is fragmented differently each time.

    Raises:
        UserError: a process failed.
    """
    if device == "cpu" and not process_memory.known():
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
        [sys.executable, "-m", "bnn_exp.commands.benchmark.training_memory"], input=job, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"the process that measures the memory of {name} failed: {last}")
    return json.loads(done.stdout)


def of_this_process(name: str, settings: Settings, device: torch.device) -> dict[str, int]:
    """Trains in this process by the way `name`. Returns the bytes, under the keys that `measure` explains, without `peaks`."""
    if name in training_ways.ENGINES:
        settle(settings, device)
        settings = settled(settings, device.type, name)  # the tiny training then uses the same products
    else:
        torch.set_num_threads(settings.engine.threads)
    data = training_ways.data_for(name, load(settings, plan.read(settings.dataset), device))
    _train(name, tiny(settings), data, steps=2)
    watch = watching(device)
    before = watch.now()
    built = _train(name, settings, data, STEPS, watch)
    peak = watch.peak()
    return {"before": before, "built": built - before, "peak_bytes": peak - before, "total_bytes": peak}


def _train(name: str, settings: Settings, data: Dataset, steps: int, watch: "Watch | None" = None) -> int:
    """Trains a new network for `steps` steps by the way `name`. Returns the bytes after network and optimizers were built,
    as `watch` reports them; 0 without `watch`."""
    step = training_ways.first_step(name, settings, data)
    built = watch.now() if watch else 0
    for rows in islice(whole_batches(data, batch_size(settings, data)), steps):
        step(rows)
    return built


class Watch(Protocol):
    """A meter of memory in bytes. `now` returns the bytes in use, `peak` the most bytes since the meter was made."""

    def now(self) -> int: ...

    def peak(self) -> int: ...


def watching(device: torch.device) -> Watch:
    """Gives free memory back to the system, then returns a new meter of memory for the device."""
    gc.collect()
    if device.type == "cuda":
        return Allocated(device)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    return Resident() if process_memory.restart_peak() else Sampled()


class Resident:
    """A meter of the resident bytes of this process, which reads the peak that Linux records."""

    def now(self) -> int:
        return process_memory.resident()

    def peak(self) -> int:
        return process_memory.peak()


class Sampled:
    """A meter of the resident bytes of this process, which samples the bytes every millisecond."""

    def __init__(self) -> None:
        self._highest = self.now()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self._highest = max(self._highest, self.now())
            time.sleep(1e-3)

    def now(self) -> int:
        return process_memory.resident()

    def peak(self) -> int:
        return max(self._highest, self.now())


class Allocated:
    """A meter of the bytes of tensors on a GPU, which asks torch's allocator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)

    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)


if __name__ == "__main__":
    job = json.load(sys.stdin)
    plugins.load(job["config"].get("plugins"))
    print(json.dumps(of_this_process(job["way"], load_settings(job["config"]), torch.device(job["device"]))))
