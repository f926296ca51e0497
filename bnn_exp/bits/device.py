"""Tells tensors of the CPU from those of a GPU.

Work on a GPU is asynchronous: Python only queues it and goes on. Reading a number back, or a size that depends on one, waits
for all queued work. A training step on a GPU therefore reads nothing back.
"""

import torch
from torch import Tensor


def on_host(where: Tensor | torch.Generator) -> bool:
    """Returns True if a tensor, or the numbers that a generator draws, are in the CPU's memory."""
    return where.device.type == "cpu"
