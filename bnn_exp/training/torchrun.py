"""One run on several processes, called ranks. Here is what the environment says of them; no torch is imported.

Rank 0 does all that a run of one process does: it reads the command line, checks it, makes the run directory, evaluates,
records and speaks. The others are given the checked plan and do nothing but compute their share of every batch.

Rank 0 starts them itself (`engine.devices=N`, see `launch`), or torchrun, or whatever else sets torchrun's variables, has.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def torchrun_size() -> int:
    """How many ranks torchrun has started, on all machines; 1 without it."""
    there = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if there else 1


def torchrun_rank() -> int:
    """Which of torchrun's ranks this process is; 0 without it."""
    return int(os.environ["RANK"]) if torchrun_size() > 1 else 0


def local_size(size: int) -> int:
    """How many of `size` ranks are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size)) if torchrun_size() > 1 else size


@contextmanager
def leading() -> Iterator[None]:
    """Within the block this process, rank 0, decides for torchrun's others; at its end they are let go if nothing was to do."""
    try:
        yield
    finally:
        if torchrun_size() > 1:
            from bnn_exp.training import launch

            launch.dismiss()
