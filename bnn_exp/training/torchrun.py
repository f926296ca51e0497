"""Reads from the environment which ranks torchrun has started. A rank is one of the processes of one run. Imports no torch.

Rank 0 does everything that a run of one process does: it reads and checks the command line, makes the run directory, evaluates,
writes the records and prints. The other ranks get the checked plan, and only compute their share of every batch.

Rank 0 starts the other ranks itself (`engine.devices=N`, see `launch`). Or torchrun has started all ranks, or another program
that sets torchrun's variables.
"""

import os


def torchrun_size() -> int:
    """Returns the number of ranks that torchrun has started on all machines; 1 without torchrun."""
    there = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if there else 1


def torchrun_rank() -> int:
    """Returns the rank of this process under torchrun, from 0; 0 without torchrun."""
    return int(os.environ["RANK"]) if torchrun_size() > 1 else 0


def local_size(size: int) -> int:
    """Returns the number of ranks on this machine, out of the `size` ranks of the run."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size)) if torchrun_size() > 1 else size
