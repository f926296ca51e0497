"""Finds out what this machine has: Triton and a compiler, a driver for GPUs, processor cores. Imports no torch."""

import ctypes
import os
import shutil
from functools import cache
from importlib.util import find_spec

DRIVER = "libcuda.so.1"


@cache
def has_triton() -> bool:
    """Returns True if Triton can run: the package is installed, and a C compiler, with which Triton builds its launches."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return find_spec("triton") is not None and compiler is not None


def has_cpp_compiler() -> bool:
    """Returns True if there is a C++ compiler, which torch.compile needs on a CPU."""
    return shutil.which(os.environ.get("CXX") or "g++") is not None


def has_driver() -> bool:
    """Returns True if this machine has a driver for NVIDIA's GPUs."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_cores() -> float:
    """Returns the number of processor cores, beside the one of this process, that had nothing to do in the last minute."""
    try:
        return cores() - 1 - os.getloadavg()[0]
    except (AttributeError, OSError):  # the system does not tell
        return cores() - 1
