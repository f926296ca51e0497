"""Measures training and inference on a GPU: tests, then tables, in under eight minutes.

    python scripts/gpu.py                                   # every part; results in gpu-measured/
    python scripts/gpu.py --only epochs kernels --data FOLDER --out FOLDER
    python scripts/gpu.py --write                           # replaces the tables in docs/gpu.md too
    python scripts/gpu.py --device cpu                      # tiny sizes: shows that the script works, measures nothing

Each part is a process of its own with a time limit, so a part that fails or hangs costs only its own rows. OUT gets `gpu.json`
after each part, the tables as `gpu.md`, and the output of each part as NAME.log. The exit code is 0 if no part failed, else 1.

FOLDER of --data holds `mnist/` and `cifar10/` as the Hugging Face hub has them, and is $BNN_EXP_DATA by default. Without both,
the data are downloaded.

Besides torch, Triton with a C compiler, and numpy, the script needs these packages, and the packages that they need:
hydra-core, omegaconf, pydantic, rich, safetensors, platformdirs, filelock, pillow, numba; datasets, unless $BNN_EXP_CACHE holds
the decoded data of another machine; for the tests also pytest, pytest-xdist, datasets, pandas, matplotlib and jinja2. For a
machine without an index, `pip download` gets the wheels elsewhere. This package itself need not be installed.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = (sys.executable, "-m", "gpu_parts")
PAGE = ROOT / "docs/gpu.md"
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NEEDS = {  # the modules that every part imports, and their packages
    "torch": "torch",
    "numpy": "numpy",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "pydantic": "pydantic",
    "rich": "rich",
    "safetensors": "safetensors",
    "platformdirs": "platformdirs",
    "filelock": "filelock",
    "PIL": "pillow",
    "numba": "numba",
}
LAST = 15  # the number of lines of a failed part's output that gpu.json keeps


@dataclass(frozen=True)
class Part:
    """A part of the measurement: the title of its table, and the most seconds that it may take."""

    title: str
    seconds: int
    needs_gpu: bool = False


PARTS = {
    "machine": Part("The machine", 40),
    "tests": Part("`pytest -m gpu`", 180, needs_gpu=True),
    "epochs": Part("An epoch of training: the median step times the number of steps, all ways in turn", 150),
    "runs": Part("An epoch of a run, as `metrics.jsonl` has it", 60),
    "engines": Part("A step of an MLP by both engines; `engine=auto` reads these numbers from now on", 60, needs_gpu=True),
    "inference": Part("Inference", 60),
    "cnn": Part("Inference of CNNs of integers, beside the float twin in bf16 as a CUDA graph", 60),
    "accuracy": Part("Seconds of training to 98% of MNIST's test samples", 60),
    "kernels": Part("The kernels of one step, by torch.profiler", 60),
    "counts": Part("Kernels that a step launches, counted without a GPU", 60),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the parts that the command line names. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("gpu-measured"), help="the folder for the results")
    parser.add_argument("--data", default=os.environ.get("BNN_EXP_DATA"), help="the folder that holds mnist/ and cifar10/")
    parser.add_argument("--minutes", type=float, default=8, help="the most minutes of all parts together")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/gpu.md")
    given = parser.parse_args(arguments)
    if absent := [package for module, package in NEEDS.items() if not find_spec(module)]:
        print(f"missing: {', '.join(absent)} (pip install, or pip download on a machine with an index)", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    where = given.device or ("cuda" if has_gpu() else "cpu")
    fixed = ["--device", where, "--out", str(given.out.resolve())]
    if given.data:
        fixed += ["--data", str(Path(given.data).resolve())]
    until = time.monotonic() + 60 * given.minutes
    found: dict[str, Any] = {"command": f"python scripts/gpu.py {shlex.join(sys.argv[1:] if arguments is None else arguments)}"}
    found |= {"date": date.today().isoformat(), "commit": commit(), "device": where, "parts": {}}
    for name in given.only:
        left = min(PARTS[name].seconds, until - time.monotonic())
        found["parts"][name] = part = measured(name, where, given.out, fixed, left)
        (given.out / "gpu.json").write_text(json.dumps(found, indent=1))
        print(f"{name}: {part['status']}, {part.get('seconds', 0):.0f} s", flush=True)
    text = tables(found)
    (given.out / "gpu.md").write_text(text)
    print(text)
    if given.write:
        PAGE.write_text(replaced(PAGE.read_text(), text))
    return int(any(part["status"].startswith(("failed", "stopped")) for part in found["parts"].values()))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def commit() -> str:
    """Returns the abbreviated commit of the tree; "" outside of a git repository."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def measured(name: str, device: str, out: Path, fixed: Sequence[str], seconds: float) -> dict[str, Any]:
    """Measures a part in a process of its own, which is killed after `seconds`. Returns the part's entry of gpu.json.

    The entry has a `status`, the `rows` so far, the `seconds`, and for a part that failed the `end` of its output.
    """
    if PARTS[name].needs_gpu and device == "cpu":
        return {"status": "no GPU: not measured", "rows": []}
    if seconds <= 0:
        return {"status": "no time left: not measured", "rows": []}
    file, log = (out / f"{name}.{kind}" for kind in ("json", "log"))
    file.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH"))))
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*PROGRAM, name, *fixed],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        try:
            code = process.wait(seconds)
            status = f"failed with exit code {code}" if code else "done"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # its own processes, such as those of pytest, end too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    entry: dict[str, Any] = {"status": status, "seconds": time.monotonic() - began}
    if status != "done":
        entry["end"] = log.read_text(errors="replace").splitlines()[-LAST:]
    return entry | {"rows": json.loads(file.read_text()) if file.exists() else []}


def tables(found: dict[str, Any]) -> str:
    """Returns the content of gpu.json as Markdown: a heading for each part, its status if it is not done, and its table."""
    lines = [f"`{found['command']}`, {found['date']}, commit {found['commit'] or 'unknown'}, device {found['device']}.", ""]
    if found["device"] == "cpu":
        lines += ["Tiny networks on a CPU: these numbers show only that the script works.", ""]
    for name, part in found["parts"].items():
        lines += [f"### {PARTS[name].title}", ""]
        if part["status"] != "done":
            lines += [f"{part['status']}.", ""]
        if part["rows"]:
            lines += [*table(part["rows"]), ""]
    return "\n".join(lines)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table. Its columns are the keys of all rows, in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    right = [all(isinstance(row.get(column, 0), int | float) for row in rows) for column in columns]
    shown = [[cell(row.get(column, "")) for column in columns] for row in rows]
    return [line(columns), line(["---:" if numbers else "---" for numbers in right]), *map(line, shown)]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(value: Any) -> str:
    """Returns a value as the text of a cell. A number has three significant digits, or all digits before the point."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def replaced(page: str, text: str) -> str:
    """Returns the page with `text` between its two markers.

    Raises:
        ValueError: the page lacks a marker.
    """
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{text}{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
