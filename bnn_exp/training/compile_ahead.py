"""Compiles the kernels of a run and leaves them in numba's cache: `python -m bnn_exp.training.compile_ahead MARK`.

Reads the configuration of the run as JSON from standard input, and creates the file MARK at the end. See
`bnn_exp.training.ahead`.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bnn_exp.bits.cpu.kernels.compiler import only_noted
from bnn_exp.config.settings import Settings, load_settings
from bnn_exp.training import engine
from bnn_exp.training.setup import network_to_train
from bnn_exp.training.tiny import random_images, tiny
from bnn_exp.training.trainer import Trainer

ROWS = 64


def compile_kernels(settings: Settings) -> None:
    """Compiles the kernels with which a run of the settings evaluates and trains, the last used first."""
    with only_noted() as kernels:
        for part in _parts(settings):
            with suppress(Exception):  # a part may fail, because its kernels compute nothing
                part()
    for kernel, types in reversed(kernels):
        kernel.compile(types)
    for part in _parts(settings):  # compiles the kernels that a failed part did not reach
        part()


def _parts(settings: Settings) -> tuple[Callable[[], object], ...]:
    """Returns the functions that evaluate a tiny network of the settings, and train it for a step."""
    data = random_images(ROWS, torch.device("cpu"))
    trainer = Trainer(settings, network_to_train(settings, data), data)

    def train() -> None:
        trainer.network.train()
        trainer.train_on(torch.arange(ROWS))

    return trainer.evaluate, train


def _small(settings: Settings) -> Settings:
    """Returns the settings of a tiny training by the same engine: engine=auto would choose `dense` for a tiny network."""
    chosen: Any = engine.choose(settings, "cpu")
    return tiny(replace(settings, engine=replace(settings.engine, name=chosen)), ROWS)


def main() -> None:
    """Compiles the kernels of the run whose configuration comes from standard input, and creates the file `sys.argv[1]`."""
    torch.set_num_threads(1)
    compile_kernels(_small(load_settings(json.load(sys.stdin))))
    mark = Path(sys.argv[1])
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


if __name__ == "__main__":
    main()
