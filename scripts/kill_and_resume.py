"""Kills a run, a sweep and a disk at random moments, and checks that nothing is lost.

    python scripts/kill_and_resume.py --kills 100 dataset=mnist dataset.path=FOLDER trainer.epochs=200

Trains the configuration once without a stop. Then it starts the same configuration with resume=auto, kills it after a random
time by SIGKILL, SIGTERM or SIGHUP, and starts it again, until it has been killed so often; the last start trains to the end.
No epoch may be trained twice, and bits and metrics must be those of the first run. A sweep of six runs is killed likewise.
Last, runs get file systems that are too small for them (needs root): they must end with a line that says so and a whole
checkpoint, and go on when there is room. Prints a line a kill; the exit code is 0 if all held, else 1.
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
IN_TRAINING = 0.75  # the part of the kills whose time begins with the first epoch of a start; of the others, with the start
TIMES = {"train_seconds", "eval_seconds", "images_per_second"}  # the only numbers that may differ
SWEEP = ("-m", "seed=0,1,2", "model.hidden_size=32,48")


class Lost(Exception):
    """Something was lost; the message says what."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="the configuration, as on bnn-train's command line")
    parser.add_argument("--kills", type=int, default=100, help="of the one run")
    parser.add_argument("--sweep-kills", type=int, default=20, help="of the sweep of six runs")
    parser.add_argument("--disks", type=int, default=20, help="runs on a disk that is too small")
    parser.add_argument("--longest", type=float, default=3.0, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    for hidden in ("--on-disk", "--straight"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    rng = random.Random(asked.seed)
    overrides = list(dict.fromkeys(["engine.threads=1", *asked.overrides]))
    signal.signal(signal.SIGHUP, lambda *_: None)  # under nohup the runs would ignore it too; a handler is not inherited
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
    """Train without a stop. Returns the directory, and the seconds that it took."""
    began = time.monotonic()
    command = [*COMMAND, *overrides, f"hydra.{kind}.dir={directory}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the unbroken run failed ({done.returncode})\n{done.stderr}")
    return directory, time.monotonic() - began


def killed(
    directory: Path, overrides: Sequence[str], kills: int, longest: float, rng: random.Random, kind: str = "run"
) -> None:
    """Start with resume=auto and kill, `kills` times; then let it end."""
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
    """Let `seconds` go by, from the first epoch that is told of if `training`, else from now. Returns them in words."""
    while training and process.poll() is None and b"\nepoch " not in os.pread(said.fileno(), 2**20, 0):
        time.sleep(0.02)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"{seconds:.2f} s after its {'first epoch' if training else 'start'}"
    return "ended before it was killed"


def check_start(out: str, before: dict[Path, int], done: dict[Path, int]) -> None:
    """A start goes on from the newest epoch, loses none, and says no more than a line or two of what went wrong."""
    if "Traceback" in out:
        raise Lost(f"a traceback\n{out}")
    for run, epoch in before.items():
        if done.get(run, 0) < epoch:
            raise Lost(f"{run} had {epoch} epochs, and has {done.get(run, 0)}")
        for said in re.findall(rf"in {re.escape(str(run))}\nresumed after epoch (\d+),", out):
            if int(said) != epoch:
                raise Lost(f"{run} had {epoch} epochs, and went on after epoch {said}")


def runs_in(directory: Path) -> list[Path]:
    """The runs of a sweep's directory, or the run's own."""
    return sorted(file.parent for file in directory.rglob("config.yaml"))


def epochs_in(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what differs from run to run."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in metrics.read(run / "metrics.jsonl")]


def epochs_done(run: Path) -> int:
    """The epochs that are trained and kept, by the newest checkpoint; each checkpoint must be whole."""
    files = [file for name in ("last", "best") if (file := run / f"checkpoints/{name}.pt").is_file()]
    try:
        return max((checkpoint.load(file)["progress"]["epoch"] for file in files), default=0)
    except UserError as error:
        raise Lost(str(error)) from error


def compare(straight: Path, other: Path, files: bool = True) -> None:
    """Bits, metrics and the names of the files must be those of the run that was never stopped."""
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
    """Kills and resumes a sweep of the configuration."""
    arguments = [SWEEP[0], *(item for item in overrides if not item.startswith("model.hidden_size=")), *SWEEP[1:]]
    straight, seconds = train(place / "sweep", arguments, "sweep")
    print(f"unbroken sweep of {len(runs_in(straight))} runs: {seconds:.0f} s")
    killed(place / "killed-sweep", arguments, kills, longest, rng, "sweep")
    for run in runs_in(straight):
        compare(run, place / "killed-sweep" / run.name)


def disks(place: Path, straight: Path, overrides: Sequence[str], count: int, rng: random.Random) -> None:
    """Runs on file systems of sizes up to that of the whole run, each in a mount namespace of its own."""
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
    """A run on a disk of `limit` bytes, which must end well or say why, and then with room."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={limit}", "tmpfs", disk], check=True)
    command, run = [*COMMAND, *overrides, f"hydra.run.dir={disk}/run", "resume=auto"], disk / "run"
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    epoch, parts = epochs_done(run), list(disk.rglob("*.part"))
    print(f"exit code {done.returncode}, {epoch} epochs done; {done.stderr.partition(chr(10))[0]}")
    if done.returncode not in (0, 1, 2) or len(done.stderr.splitlines()) > 3 or "Traceback" in done.stderr or parts:
        raise Lost(f"it left {parts} and said\n{done.stderr}")
    subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
    again = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    check_start(again.stdout, {run: epoch}, {run: epochs_done(run)})
    if again.returncode:
        raise Lost(f"with room it ended with {again.returncode}\n{again.stdout}")
    compare(straight, run, files=done.returncode != 0)  # a run that completed may lack a picture


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
