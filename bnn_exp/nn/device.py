"""Distinguishes tensors in the CPU's memory from tensors on a GPU.

Work on a GPU is asynchronous: Python only queues it and goes on. Code that reads a number from the GPU, or a
size that depends on such a number, waits for all queued work. A training step on a GPU therefore reads no number.
"""

import torch
from torch import Tensor


def on_host(where: Tensor | torch.Generator) -> bool:
    """Returns True if `where`, a tensor or the numbers that a generator draws, is in the CPU's memory."""
    return where.device.type == "cpu"
