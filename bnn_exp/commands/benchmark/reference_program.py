"""Measures epochs of the reference program and of this package in turn. The user gives the path of the program."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from bnn_exp.commands.benchmark.timing import summary
from bnn_exp.commands.benchmark.training_times import whole_batches
from bnn_exp.config.settings import Settings
from bnn_exp.data.sources import Arrays
from bnn_exp.errors import UserError
from bnn_exp.records.terminal import progress
from bnn_exp.training import engine
from bnn_exp.training.trainer import Trainer

ROUNDS, EPOCHS = 3, 2  # in each round the program and our trainer train EPOCHS epochs each
LAYERS, PIXELS, CLASSES, BATCH = 4, (28, 28), 10, 16384  # fixed in the reference program
DELTA = 0.1  # the δ that the program gets if our rule is not HyperMask


@dataclass(frozen=True)
class ReferenceProgram:
    """The command `python PATH FOLDER HIDDEN EPOCHS DELTA`, which prints `train_s SECONDS` for each epoch."""

    path: Path
    folder: Path
    hidden: int
    delta: float
    device: torch.device

    @classmethod
    def of(cls, path: str, settings: Settings, arrays: Arrays, device: torch.device) -> "ReferenceProgram":
        """Returns the program at `path` with arguments for the network and data of the settings.

        Raises:
            UserError: the file is missing, or the program can't train such a network or such data.
        """
        if not Path(path).is_file():
            raise UserError(f"benchmark.reference_program={path}: no such file\nallowed: the path of the reference program")
        model, pixels = settings.model, arrays.train_images.shape[1:]
        able = (
            (model.name == "mlp", f"model={model.name}", "model=mlp"),
            (getattr(model, "num_layers", 0) == LAYERS, "model.num_layers", f"model.num_layers={LAYERS}"),
            (getattr(settings.dataset, "path", None), f"dataset={settings.dataset.name}", "dataset.path=FOLDER"),
            (pixels == (1, *PIXELS), f"images of {'×'.join(map(str, pixels))}", "grey images of 28×28, as in mnist"),
            (len(arrays.classes) <= CLASSES, f"{len(arrays.classes)} classes", f"up to {CLASSES} classes"),
        )
        for possible, what, allowed in able:
            if not possible:
                raise UserError(f"benchmark.reference_program: the reference program can't train {what}\nallowed: {allowed}")
        optimizer = settings.optimizer
        delta = optimizer.delta if optimizer.name == "hypermask" else DELTA
        return cls(Path(path).resolve(), Path(settings.dataset.path).resolve(), model.hidden_size, delta, device)

    def epochs(self, count: int) -> list[float]:
        """Runs `count` epochs in a new process, and returns the seconds of training of each epoch.

        Raises:
            UserError: the program failed, or did not print the seconds of each epoch. The message holds its last output
                line.
        """
        command = [sys.executable, str(self.path), str(self.folder), str(self.hidden), str(count), str(self.delta)]
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment())
        found = [float(seconds) for seconds in re.findall(r"\btrain_s (\d+\.?\d*)", done.stdout)]
        if done.returncode or len(found) != count:
            last = (done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["it printed nothing"])[-1]
            raise UserError(
                f"benchmark.reference_program={self.path}: exit code {done.returncode}, "
                f"{len(found)} of {count} epochs: {last}\n"
                "allowed: a program that takes FOLDER HIDDEN EPOCHS DELTA and prints train_s SECONDS for each epoch"
            )
        return found

    def _environment(self) -> dict[str, str]:
        """Returns the environment of the program, with the number of threads and the GPU of this process.

        The variable by which our engines choose how idle threads wait is left out: the program keeps torch's default.
        """
        visible = ""
        if self.device.type == "cuda":
            index, seen = self.device.index or 0, os.environ.get("CUDA_VISIBLE_DEVICES")
            visible = seen.split(",")[index] if seen else str(index)
        given = {name: value for name, value in os.environ.items() if name != engine.WAITING}
        return given | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "CUDA_VISIBLE_DEVICES": visible}


def compare(program: ReferenceProgram, trainer: Trainer, rows: int) -> dict:
    """Measures epochs of the program and of our trainer in turn.

    Args:
        rows: the number of rows that the program trains on in an epoch: all train rows.

    Returns:
        - `seed` for the program, `ours` for the trainer: the seconds of an epoch (`median`, and the quartiles `low`
          and `high`), and the `images_per_second` of the median;
        - `rows` and `batch`: the numbers of images of an epoch and of a step of the program;
        - `speedup`: our images per second divided by those of the program.

    Raises:
        UserError: the program fails.
    """
    seconds: dict[str, list[float]] = {"seed": [], "ours": []}
    with progress("rounds beside the reference program", ROUNDS) as done:
        for turn in range(ROUNDS):
            seconds["seed"] += program.epochs(EPOCHS)
            if not turn:
                # The first step compiles the kernels, so it is not measured.
                trainer.train_on(next(whole_batches(trainer.data, trainer.batches.size(0))))
            epochs = [trainer.epoch() for _ in range(EPOCHS)]
            seconds["ours"] += [epoch["train_seconds"] for epoch in epochs]
            done(1)
    images = {"seed": rows, "ours": round(epochs[-1]["train_seconds"] * epochs[-1]["images_per_second"])}
    found = {
        who: summary(times) | {"images_per_second": images[who] / summary(times)["median"]} for who, times in seconds.items()
    }
    speedup = found["ours"]["images_per_second"] / found["seed"]["images_per_second"]
    return found | {"rows": rows, "batch": BATCH, "speedup": speedup}
