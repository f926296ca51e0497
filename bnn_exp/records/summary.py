"""Writes and reads `summary.json`, which says what a run was and how the run ended. Imports no torch, so a
run that fails early can write the file too."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from bnn_exp import __version__
from bnn_exp.config import command_line
from bnn_exp.records.files import write_json

PACKAGES = ("torch", "hydra-core", "numpy", "datasets")
STATUS = ("completed", "failed", "interrupted")


def write(directory: Path, status: str, **facts: Any) -> dict[str, Any]:
    """Writes the summary of the run in `directory`, and returns the summary. Adds command, versions and machine to `facts`.

    Args:
        status: completed, failed or interrupted.
    """
    flags = command_line.flags(HydraConfig.get()) if HydraConfig.initialized() else []
    flags = flags or (read(directory) or {}).get("flags", [])  # a run that resumes without flags keeps its earlier flags
    summary = {"status": status, **facts, **({"flags": flags} if flags else {}), "command": sys.argv[1:], **surroundings()}
    write_json(directory / "summary.json", summary)
    return summary


def read(directory: Path) -> dict[str, Any] | None:
    """Returns the summary in a run directory; None if it is missing or damaged."""
    try:
        return json.loads((directory / "summary.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None


def surroundings() -> dict[str, Any]:
    """Returns the versions of Python and packages, the machine, and the git commit of the working directory."""
    versions = {"python": platform.python_version(), "bnn-exp": __version__} | {name: _version(name) for name in PACKAGES}
    return {"versions": versions, "machine": platform.platform(), "cpus": os.cpu_count(), "git_commit": git_commit()}


def _version(package: str) -> str | None:
    """Returns the version of an installed package; None if its metadata are missing, as in a plain source tree."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Returns the commit of the working directory, with -dirty if files are changed; None outside of git."""
    try:
        git = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True, start_new_session=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
