"""Shows how far `engine=auto` is from the faster engine, over a grid of MLPs, batch sizes and rules on a CPU.

    python scripts/engines.py [--most WORK] [--rounds N] [--threads N]

Measures a training step of both engines at every point of the grid, on random images of 28 × 28 pixels, and prints for each
rule the points where `auto` is more than 2% slower than the faster engine. Points of more than WORK multiply-adds are left out:
there one engine is far ahead. `auto` reads the measurements of `benchmark=machine`, or without them follows its estimate for
this kind of processor.
"""

import argparse
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from bnn_exp.cli import CONF
from bnn_exp.commands.benchmark.engine_times import steps
from bnn_exp.commands.benchmark.machine import using_threads
from bnn_exp.config import versions
from bnn_exp.config.settings import Settings, load_settings
from bnn_exp.training import engine
from bnn_exp.training.setup import settle

HIDDEN, BATCHES = (64, 128, 256, 512, 1024, 2048), (64, 256, 1024, 4096, 16384)
RULES = {
    "random": ("optimizer=hypermask", "optimizer.mask=random"),
    "top": ("optimizer=hypermask", "optimizer.mask=top"),
    "counter": ("optimizer=counter",),
    "bop": ("optimizer=bop",),
}


def settings_of(*overrides: str) -> Settings:
    """Returns the settings of an MLP on a CPU, with a constant schedule."""
    with initialize_config_dir(str(CONF), **versions.HYDRA):
        return load_settings(compose("config", ["model=mlp", "device=cpu", "optimizer.schedule=constant", *overrides]))


def loss(settings: Settings, step: dict[str, Any]) -> tuple[str, float]:
    """Returns the engine that `auto` chooses for a measured step, and its time over that of the faster engine."""
    sized = replace(
        settings,
        model=replace(settings.model, hidden_size=step["hidden"]),
        trainer=replace(settings.trainer, batch_size=step["batch"]),
    )
    chosen = engine.choose(sized, "cpu")
    return chosen, step[chosen] / min(step["dense"], step["packed"])


def main() -> None:
    """Measures both engines, and prints how far `auto` is from the faster one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=float, default=3e9, help="multiply-adds of the largest point")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    sizes = [(hidden, batch) for hidden, batch in product(HIDDEN, BATCHES) if (784 + 2 * hidden) * hidden * batch <= given.most]
    with using_threads(given.threads):
        for name, overrides in RULES.items():
            settings = settings_of(*overrides)
            settle(settings, torch.device("cpu"))
            losses = []
            for step in steps(settings, torch.device("cpu"), {name: settings.optimizer}, sizes, given.rounds):
                chosen, times = loss(settings, step)
                losses.append(times)
                if times > 1.02:
                    dense, packed = (1e3 * step[engine] for engine in ("dense", "packed"))
                    print(f"{name} {step['hidden']} × {step['batch']}: {chosen}, dense {dense:.3g} ms, packed {packed:.3g} ms")
            print(f"{name}: {len(losses)} points, auto takes at most {100 * max(losses) - 100:.0f}% longer", flush=True)


if __name__ == "__main__":
    main()
