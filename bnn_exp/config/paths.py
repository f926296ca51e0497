"""Paths as people write them."""

import os
from pathlib import Path


def at_home(path: str) -> str:
    """Returns a path with ~ and ~USER expanded, otherwise as it is written."""
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib drops a leading ./ and fails for a USER that is not there)


def is_there(path: str) -> bool:
    """Whether there is a file or folder of this name; False too where no file can have it."""
    return os.path.exists(at_home(path))  # noqa: PTH110 (pathlib fails for a long name)


def is_file(path: Path) -> bool:
    """Whether it is a file; False too where no file can have its name."""
    return os.path.isfile(path)  # noqa: PTH113 (pathlib fails for a long name)
