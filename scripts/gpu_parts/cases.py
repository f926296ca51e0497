"""The trainings that are measured, and the device and the data with which they are measured."""

import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf

from bnn_exp.cli import CONF  # its import registers all that conf/ names
from bnn_exp.commands.benchmark import training_ways
from bnn_exp.config import versions
from bnn_exp.config.compatibility import PACKED
from bnn_exp.config.settings import REQUEST, load_settings
from bnn_exp.training.plan import read
from bnn_exp.training.setup import load, settle

Row = dict[str, Any]  # a row of a table: column → value


@dataclass(frozen=True)
class Case:
    """A training that is measured, by its overrides. `tiny` are the overrides that replace them on a CPU."""

    name: str
    overrides: str
    tiny: str = "dataset=digits model.hidden_size=32 trainer.batch_size=256 dataset.limit=1024"


CASES = (
    Case("MNIST h=1024 batch 1024 counter", "optimizer=counter model.hidden_size=1024 trainer.batch_size=1024"),
    Case("MNIST h=256 batch 1024 top", "optimizer=hypermask_top model.hidden_size=256 trainer.batch_size=1024"),
    Case("MNIST h=256 batch 1024 counter", "optimizer=counter model.hidden_size=256 trainer.batch_size=1024"),
    Case(
        "MNIST h=1024 batch 16384 random δ=0.1 SGD",
        "optimizer=hypermask_random delta=0.1 real_optimizer=sgd model.hidden_size=1024 trainer.batch_size=16384",
        "dataset=digits dataset.limit=512 optimizer=hypermask_random model.hidden_size=32 trainer.batch_size=256",
    ),
    Case(
        "MNIST bncvl batch 128",
        "model=bncvl trainer.batch_size=128",
        "dataset=digits dataset.limit=256 model=bncvl model.channels=[8] model.dense=[16] trainer.batch_size=64",
    ),
    Case(
        "CIFAR-10 vgg batch 256 counter augmented",
        "dataset=cifar10 model=vgg optimizer=counter trainer.batch_size=256 dataset.augment=standard",
        "dataset=digits dataset.limit=256 model=vgg model.channels=[8] optimizer=counter trainer.batch_size=64",
    ),
)


@dataclass(frozen=True)
class Machine:
    """The device that is measured, the folder of the data, and the folder of the results."""

    device: str  # cuda or cpu
    data: str | None
    out: Path

    @property
    def torch_device(self) -> Any:
        return torch.device("cuda:0" if self.device == "cuda" else "cpu")

    def composed(self, case: Case) -> dict[str, Any]:
        """Returns the configuration of a case as plain values."""
        given = case.overrides if self.device == "cuda" else case.tiny
        dataset = next((word for word in given.split() if word.startswith("dataset=")), "dataset=mnist")
        place = f"dataset.path={self.data}/{dataset.removeprefix('dataset=')}"
        overrides = [dataset, place] if self.data and dataset != "dataset=digits" else [dataset]
        with hydra.initialize_config_dir(str(CONF), **versions.HYDRA):
            composed = hydra.compose("config", [*overrides, f"device={self.device}", *given.split()])
        values: Any = OmegaConf.to_container(composed, resolve=True)
        return {key: value for key, value in values.items() if key not in REQUEST}

    def training(self, values: dict[str, Any]) -> tuple[Any, Any]:
        """Returns the settings and the data of a configuration."""
        settings = load_settings(values)
        settle(settings, self.torch_device)
        return settings, load(settings, read(settings.dataset), self.torch_device)

    def held(self, case: Case) -> tuple[Any, Any]:
        """Returns the settings and the data of a case, without schedules."""
        return self.training(training_ways.held(self.composed(case), 8 if self.device == "cuda" else 1))

    def engines(self, settings: Any) -> tuple[str, ...]:
        """Returns the engines that can train the settings."""
        return ("dense",) if PACKED.reason_against(settings, self.device) else ("dense", "packed")


def each(machine: Machine, cases: Sequence[Case], measure: Callable[[Machine, Case], Iterator[Row]]) -> Iterator[Row]:
    """Yields the rows that `measure` yields for each case. A case that fails gets a row with its error.

    Raises:
        RuntimeError: after the last case, if a case has failed.
    """
    failed = []
    for case in cases:
        try:
            yield from measure(machine, case)
        except Exception as error:
            traceback.print_exc()
            failed.append(case.name)
            yield {"failed": case.name, "error": shortened(error)}
        gc.collect()
        if machine.device == "cuda":
            torch.cuda.empty_cache()
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def shortened(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
