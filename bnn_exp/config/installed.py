"""Finds out whether Triton can run on this machine, without importing Triton or torch."""

import os
import shutil
from functools import cache
from importlib.util import find_spec


@cache
def has_triton() -> bool:
    """Returns True if Triton can run: the package is installed, and a C compiler, with which Triton builds its launches."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return find_spec("triton") is not None and compiler is not None
