"""The places of a machine where jobs of `launcher=local` run: shares of its GPUs, and its processor cores."""

import os
from collections.abc import Sequence

from bnn_exp.config import installed

VISIBLE = "CUDA_VISIBLE_DEVICES"  # the environment variable that names the GPUs which CUDA shows to a process


def gpus() -> list[str]:
    """Returns the names of the GPUs that this process may use, as in CUDA_VISIBLE_DEVICES: numbers, UUIDs or MIG names.

    Counting starts no work on a GPU. Torch, whose import takes seconds, is imported only on a machine with a driver for GPUs.
    """
    given = os.environ.get(VISIBLE)
    if given == "" or not installed.has_driver():
        return []
    import torch

    count = torch.cuda.device_count()
    names = [str(i) for i in range(count)] if given is None else [name.strip() for name in given.split(",")]
    # CUDA shows one MIG device to a process, also if the variable names several.
    return names if names and names[0].startswith("MIG-") else names[:count]


class Places:
    """The places that are free. A job on a GPU takes a share of the GPU, or of several GPUs; at most `most` jobs run at a time.

    Args:
        gpus: the names of the GPUs.
        per_gpu: the number of jobs that share a GPU.
        most: the greatest number of jobs at a time. None: the number of cores, or of all shares of GPUs if that is greater.
    """

    def __init__(self, gpus: Sequence[str], per_gpu: int = 1, most: int | None = None):
        self.per_gpu, self.most = per_gpu, most or max(installed.cores(), len(gpus) * per_gpu)
        self.shares = dict.fromkeys(gpus, per_gpu)  # the free shares of each GPU
        self.running = 0

    def at_a_time(self, devices: int) -> int:
        """Returns the greatest number of jobs that run at a time, if each job needs this number of GPUs."""
        shares = len(self.shares) * self.per_gpu
        return min(self.most, max(1, shares // devices)) if devices else self.most

    def take(self, devices: int) -> tuple[str, ...] | None:
        """Takes a place for a job, and returns the names of the job's GPUs. Returns None if no such place is free.

        The job gets the GPUs with the fewest jobs. A job that needs more GPUs than the machine has gets all of them: the job
        itself refuses, with a message.
        """
        devices = min(devices, len(self.shares))
        free = sorted((name for name, shares in self.shares.items() if shares), key=lambda name: -self.shares[name])
        if self.running == self.most or len(free) < devices:
            return None
        self.running += 1
        for name in free[:devices]:
            self.shares[name] -= 1
        return tuple(free[:devices])

    def leave(self, names: Sequence[str]) -> None:
        """Frees the place of a job that ran on the GPUs `names`."""
        self.running -= 1
        for name in names:
            self.shares[name] += 1
