"""Expands and tests paths as people type them: with ~, of any length and with any character."""

import os
from pathlib import Path

import platformdirs


def at_home(path: str) -> str:
    """Returns a path with ~ and ~USER expanded. The rest of the path stays as typed."""
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib drops a leading ./ and fails for an unknown USER)


def cache_root() -> Path:
    """Returns the folder of all cached files: $BNN_EXP_CACHE, else the user's cache folder."""
    return Path(at_home(os.environ.get("BNN_EXP_CACHE") or platformdirs.user_cache_dir("bnn_exp")))


def is_there(path: str) -> bool:
    """Returns True if a file or folder exists at a path; False also for a path that no file can have."""
    return os.path.exists(at_home(path))  # noqa: PTH110 (pathlib fails for a long name)


def is_file(path: Path) -> bool:
    """Returns True if a file exists at a path; False also for a path that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113 (pathlib fails for a long name)
