"""Describes the machine of a measurement, and sets the number of threads that compute."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bnn_exp.training.measured import processor


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Returns the `device` and its `name`, the number of `threads`, the version of `torch` and the operating `system`.

    Args:
        threads: the number of threads that compute. The function only records the number.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"device": device.type, "name": name, "threads": threads, "torch": torch.__version__, "system": platform.platform()}


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Context manager: torch and the kernels of this package use `count` threads while the body runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
