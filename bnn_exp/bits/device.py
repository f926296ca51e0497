"""Which tensors the processor that runs Python computes with itself.

Of others it only says what is to be done, and goes on. Whatever asks for a number of theirs, or how many there are, waits for
all that was said before; a step of a training on a GPU does not ask.
"""

import torch
from torch import Tensor


def on_host(where: Tensor | torch.Generator) -> bool:
    """Whether a tensor, or what a generator draws, lies where Python runs."""
    return where.device.type == "cpu"
