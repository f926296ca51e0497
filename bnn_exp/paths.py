"""Paths as people write them."""

import os


def at_home(path: str) -> str:
    """Returns a path with ~ and ~USER expanded, otherwise as it is written."""
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib drops a leading ./ and fails for a USER that is not there)
