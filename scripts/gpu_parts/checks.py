"""The part `tests`: the outcome of `pytest -m gpu`."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from gpu_parts.cases import Machine, Row

TESTS = Path(__file__).resolve().parent.parent.parent / "tests"
MOST = 12  # processes at a time, each with memory of its own on the GPU
NEEDS = ("pytest", "xdist", "datasets", "pandas", "matplotlib", "jinja2")


def of_tests(machine: Machine) -> Iterator[Row]:
    """Runs `pytest -m gpu`. Yields the numbers of tests by outcome, then each failed test with the first line of its error.

    Raises:
        RuntimeError: pytest ended without a report.
    """
    if absent := [name for name in NEEDS if not find_spec(name)]:
        yield {"test": "not run", "outcome": f"missing: {', '.join(absent)}"}
        return
    file = machine.out / "tests.xml"
    workers = min(len(os.sched_getaffinity(0)), MOST)
    options = f"-m pytest -q -m gpu -n {workers} --dist=worksteal -o addopts= --junitxml={file} {TESTS}"
    if subprocess.run([sys.executable, *options.split()]).returncode and not file.exists():
        raise RuntimeError("pytest did not begin")
    suite = ET.parse(file).getroot()[0]
    failed, skipped = int(suite.get("failures", 0)) + int(suite.get("errors", 0)), int(suite.get("skipped", 0))
    passed, seconds = int(suite.get("tests", 0)) - failed - skipped, float(suite.get("time", 0))
    yield {"test": "all", "outcome": f"{passed} passed, {failed} failed, {skipped} skipped, {seconds:.0f} s"}
    for test in suite.iter("testcase"):
        for outcome in (*test.iter("failure"), *test.iter("error")):
            yield {"test": test.get("name"), "outcome": outcome.get("message", "").split("\n")[0][:300]}
