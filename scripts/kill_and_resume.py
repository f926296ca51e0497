"""Kills runs and sweeps at random moments, fills disks, and checks that nothing is lost.

    python scripts/kill_and_resume.py --kills 100 dataset=mnist dataset.path=FOLDER trainer.epochs=200

First the script trains the configuration without a stop. Then it starts the configuration with resume=auto, kills it after a
random time by SIGKILL, SIGTERM or SIGHUP, and starts it again. After `--kills` kills the last start trains to the end. No epoch
may be trained twice, and bits and metrics must equal those of the first run. A sweep of six runs is killed in the same way.

Last, runs get file systems that are too small for them (this needs root). Such a run must end with a line that names the
reason, and with a valid checkpoint; it must continue when there is room. The script prints a line per kill. Its exit code is 0
if nothing was lost, else 1.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from bnn_exp.errors import UserError
from bnn_exp.records import checkpoint, metrics, summary

COMMAND = [sys.executable, "-m", "bnn_exp"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
IN_TRAINING = 0.75  # the share of kills that come after the first epoch of a start; the others may come before
TIMES = {"train_seconds", "eval_seconds", "images_per_second"}  # the only numbers that may differ
SWEEP = ("-m", "seed=0,1,2", "model.hidden_size=32,48")


class Lost(Exception):
    """Something was lost. The message names it."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="the configuration, as on bnn-train's command line")
    parser.add_argument("--kills", type=int, default=100, help="number of kills of the single run")
    parser.add_argument("--sweep-kills", type=int, default=20, help="number of kills of the sweep of six runs")
    parser.add_argument("--disks", type=int, default=20, help="number of runs on a disk that is too small")
    parser.add_argument("--longest", type=float, default=3.0, help="most seconds until a kill")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments and signals")
    for hidden in ("--on-disk", "--straight"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    rng = random.Random(asked.seed)
    overrides = list(dict.fromkeys(["engine.threads=1", *asked.overrides]))
    # under nohup the runs would inherit an ignored SIGHUP; they do not inherit a handler
    signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        if asked.on_disk:
            on_disk(asked.on_disk, asked.limit, asked.straight, overrides)
            return 0
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            straight, seconds = train(place / "straight", overrides)
            print(f"unbroken: {len(epochs_in(straight))} epochs in {seconds:.0f} s")
            if asked.kills:
                killed(place / "killed", overrides, asked.kills, asked.longest, rng)
                compare(straight, place / "killed")
            if asked.sweep_kills:
                sweeps(place, overrides, asked.sweep_kills, asked.longest, rng)
            if asked.disks:
                disks(place, straight, overrides, asked.disks, rng)
    except Lost as lost:
        print(f"LOST: {lost}")
        return 1
    print("nothing was lost")
    return 0


def train(directory: Path, overrides: Sequence[str], kind: str = "run") -> tuple[Path, float]:
    """Trains without a stop. Returns the directory, and the seconds that the training took."""
    began = time.monotonic()
    command = [*COMMAND, *overrides, f"hydra.{kind}.dir={directory}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the unbroken run failed ({done.returncode})\n{done.stderr}")
    return directory, time.monotonic() - began


def killed(
    directory: Path, overrides: Sequence[str], kills: int, longest: float, rng: random.Random, kind: str = "run"
) -> None:
    """Starts the command with resume=auto and kills it, `kills` times. A last start trains to the end.

    Args:
        longest: the most seconds until a kill.
        kind: `run` or `sweep`.

    Raises:
        Lost: a start loses something, or the last start fails.
    """
    counts: dict[str, int] = {}
    for i in range(kills + 1):
        before = {run: epochs_done(run) for run in runs_in(directory)}
        command = [*COMMAND, *overrides, f"hydra.{kind}.dir={directory}", "resume=auto"]
        number, training, seconds = rng.choice(SIGNALS), rng.random() < IN_TRAINING, rng.uniform(0, longest)
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
            when = "to the end"
            if i < kills:
                when = wait(process, said, training, seconds)
                if process.poll() is None:
                    process.send_signal(number)
                    when = f"{number.name} {when}"
                    counts[number.name] = counts.get(number.name, 0) + 1
            process.wait()
            said.seek(0)
            out = said.read()
        done = {run: epochs_done(run) for run in runs_in(directory)}
        print(f"{i + 1:>4}  {when}: exit code {process.returncode}, {sum(done.values())} epochs done", flush=True)
        check_start(out, before, done)
        if process.returncode == 0:
            break
    if process.returncode:
        raise Lost(f"the last start ended with {process.returncode}\n{out}")
    print(f"killed {sum(counts.values())} times: {', '.join(f'{n} by {name}' for name, n in sorted(counts.items()))}")


def wait(process: subprocess.Popen, said: IO[str], training: bool, seconds: float) -> str:
    """Waits `seconds`, or until the process ends. Returns a description of the moment.

    Args:
        said: the output of the process.
        training: True to begin when the first epoch is printed, False to begin now.
    """
    while training and process.poll() is None and b"\nepoch " not in os.pread(said.fileno(), 2**20, 0):
        time.sleep(0.02)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"{seconds:.2f} s after its {'first epoch' if training else 'start'}"
    return "ended before it was killed"


def check_start(out: str, before: dict[Path, int], done: dict[Path, int]) -> None:
    """Checks that a start continued after the newest epoch and kept all epochs, and that it printed no traceback.

    Args:
        out: the output of the start.
        before: the epochs of each run before the start.
        done: the epochs of each run after the start.

    Raises:
        Lost: a check fails.
    """
    if "Traceback" in out:
        raise Lost(f"a traceback\n{out}")
    for run, epoch in before.items():
        if done.get(run, 0) < epoch:
            raise Lost(f"{run} had {epoch} epochs, and has {done.get(run, 0)}")
        for said in re.findall(rf"in {re.escape(str(run))}\nresumed after epoch (\d+),", out):
            if int(said) != epoch:
                raise Lost(f"{run} had {epoch} epochs, and went on after epoch {said}")


def runs_in(directory: Path) -> list[Path]:
    """Returns the directories of all runs in `directory`, which may be a run itself."""
    return sorted(file.parent for file in directory.rglob("config.yaml"))


def epochs_in(run: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without the times, which differ from run to run."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in metrics.read(run / "metrics.jsonl")]


def epochs_done(run: Path) -> int:
    """Returns the number of epochs in the newest checkpoint of a run.

    Raises:
        Lost: a checkpoint is damaged.
    """
    files = [file for name in ("last", "best") if (file := run / f"checkpoints/{name}.pt").is_file()]
    try:
        return max((checkpoint.load(file)["progress"]["epoch"] for file in files), default=0)
    except UserError as error:
        raise Lost(str(error)) from error


def compare(straight: Path, other: Path, files: bool = True) -> None:
    """Checks that a run has the bits, the metrics and the file names of the run that was never stopped.

    Args:
        files: False to leave out the file names.

    Raises:
        Lost: something differs.
    """
    one, two = summary.read(straight), summary.read(other)
    if not two or two["status"] != "completed":
        raise Lost(f"{other} is {two['status'] if two else 'unfinished'}")
    if one["bits_sha256"] != two["bits_sha256"]:
        raise Lost(f"{other} has other bits than {straight}")
    if epochs_in(straight) != epochs_in(other):
        raise Lost(f"{other} has other metrics than {straight}")
    names = [{str(file.relative_to(run)) for file in run.rglob("*")} for run in (straight, other)]
    if files and names[0] != names[1]:
        raise Lost(f"{other} has other files than {straight}: {sorted(names[0] ^ names[1])}")
    print(f"{other.name}: the bits and the metrics of {len(epochs_in(other))} epochs are those of the unbroken run")


def sweeps(place: Path, overrides: Sequence[str], kills: int, longest: float, rng: random.Random) -> None:
    """Kills and resumes a sweep of the configuration, then compares all its runs."""
    arguments = [SWEEP[0], *(item for item in overrides if not item.startswith("model.hidden_size=")), *SWEEP[1:]]
    straight, seconds = train(place / "sweep", arguments, "sweep")
    print(f"unbroken sweep of {len(runs_in(straight))} runs: {seconds:.0f} s")
    killed(place / "killed-sweep", arguments, kills, longest, rng, "sweep")
    for run in runs_in(straight):
        compare(run, place / "killed-sweep" / run.name)


def disks(place: Path, straight: Path, overrides: Sequence[str], count: int, rng: random.Random) -> None:
    """Starts runs on file systems smaller than the whole run. Each one has its own mount namespace."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        print("no disk was filled: it takes root to mount a small one")
        return
    size = sum(512 * file.stat().st_blocks for file in straight.rglob("*") if file.is_file())
    (disk := place / "disk").mkdir()
    for i in range(count):
        limit = rng.randint(4096, size)
        here = [sys.executable, __file__, f"--on-disk={disk}", f"--limit={limit}", f"--straight={straight}", *overrides]
        done = subprocess.run(["unshare", "-m", *here], capture_output=True, text=True)
        if done.returncode:
            raise Lost(f"a disk of {limit:,} bytes\n{done.stdout}{done.stderr}")
        print(f"{i + 1:>4}  a disk of {limit:,} bytes: {done.stdout.splitlines()[0]}", flush=True)


def on_disk(disk: Path, limit: int, straight: Path, overrides: Sequence[str]) -> None:
    """Checks a run on a disk of `limit` bytes: it must complete, or name the reason, and complete when there is room."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={limit}", "tmpfs", disk], check=True)
    command, run = [*COMMAND, *overrides, f"hydra.run.dir={disk}/run", "resume=auto"], disk / "run"
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    epoch, parts = epochs_done(run), list(disk.rglob("*.part"))
    print(f"exit code {done.returncode}, {epoch} epochs done; {done.stderr.partition(chr(10))[0]}")
    if done.returncode not in (0, 1, 2) or len(done.stderr.splitlines()) > 3 or "Traceback" in done.stderr or parts:
        raise Lost(f"it left {parts} and printed\n{done.stderr}")
    subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
    again = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    check_start(again.stdout, {run: epoch}, {run: epochs_done(run)})
    if again.returncode:
        raise Lost(f"with room it ended with {again.returncode}\n{again.stdout}")
    compare(straight, run, files=done.returncode != 0)  # a run that completed on the full disk may lack a plot


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
