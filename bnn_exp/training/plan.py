"""The plan of a run: settings, data, device and checkpoint, all checked before the run writes a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bnn_exp.config import compatibility, models, plugins, unread, zoo
from bnn_exp.config.datasets import DATASETS
from bnn_exp.config.paths import at_home
from bnn_exp.config.settings import REQUEST, Settings, load_settings, resolved
from bnn_exp.data import sources
from bnn_exp.data.sources import Arrays
from bnn_exp.errors import UserError
from bnn_exp.records import loggers
from bnn_exp.records.directories import State
from bnn_exp.training import ahead, engine, tryout
from bnn_exp.training.torchrun import local_size, torchrun_size

PLACE = ("hub", "path", "label", "size", "channels", "fit", "background", "range", "test_fraction")


@dataclass(frozen=True)
class Plan:
    """A run that can begin, or a finished run, which has nothing left to do. `finished` is not empty for a finished run."""

    settings: Settings
    config: dict  # the settings as plain values, for config.yaml
    arrays: Arrays | None
    device: str = "cpu"
    saved: dict[str, Any] | None = None  # the checkpoint from which the run resumes
    finished: str = ""  # for a finished run, a message for the user
    accuracy: float | None = None  # percent; for a finished run, the best validation accuracy, else the test accuracy
    overrides: list[str] = field(default_factory=list)  # the overrides of the command line
    remark: str = ""  # a sentence that is printed when the run begins
    found: State | None = None  # the state of the run's directory when the plan was made; None if it was not read


def make_plan(composed: DictConfig, overrides: Sequence[str]) -> Plan:
    """Returns the plan of a new run from the composed configuration and the command line's `overrides`.

    Raises:
        UserError: a setting is wrong, or settings, data and device do not fit together.
    """
    settings = load_settings(composed)
    loggers.check(settings.logger)
    values, devices = values_of(composed), settings.engine.devices
    settings = with_devices(settings, values, None if devices == 1 and not _says(overrides, "engine.devices") else devices)
    unread.check_training(settings, overrides)
    if settings.optimizer.name == "latent":
        from bnn_exp.optim.latent import Latent

        Latent.check(settings.optimizer)
    ahead.begin(settings, values)
    arrays = read(settings.dataset)
    unread.check_data(arrays.own_test, overrides)
    models.check_images(settings.model, arrays.train_images.shape[2:])
    tryout.check(settings, arrays)
    if settings.init_from or settings.freeze or settings.fresh:
        from bnn_exp.training import finetune

        finetune.check(settings, arrays.train_images.shape[1:], arrays.classes)
    return Plan(settings, values, arrays, device_for(settings), overrides=list(overrides))


def values_of(composed: DictConfig) -> dict[str, Any]:
    """Returns the values that config.yaml keeps of a composed configuration: the settings of the run, with absolute paths."""
    values = {key: value for key, value in resolved(composed).items() if key not in REQUEST} | {"resume": None}
    for group, key in ((values["dataset"], "path"), (values, "init_from")):
        if group.get(key) and (key != "init_from" or zoo.located(group[key]) == Path(group[key])):
            group[key] = str(Path(at_home(group[key])).resolve())
    return values | {"plugins": plugins.entries(values.get("plugins"))}


def _says(overrides: Sequence[str], key: str) -> bool:
    return any(item.lstrip("+").partition("=")[0] == key for item in overrides)


def with_devices(settings: Settings, values: dict, requested: int | None) -> Settings:
    """Returns the settings with the number of devices of this run, and writes the number into `values` too.

    Args:
        values: the settings as plain values.
        requested: the number that the user requests. None stands for the number of torchrun's processes, or without torchrun
            for `engine.devices`.

    Raises:
        UserError: torchrun has started another number of processes, or there are too many devices for
            `engine.all_reduce=int8`.
    """
    started = torchrun_size()
    if started > 1 and requested not in (None, started):
        raise UserError(
            f"engine.devices={requested}: torchrun has started {started} processes\n"
            f"allowed: engine.devices={started}, or no engine.devices at all"
        )
    devices = started if started > 1 else requested or settings.engine.devices
    values["engine"]["devices"] = devices
    settings = replace(settings, engine=replace(settings.engine, devices=devices))
    compatibility.check_exchange(settings)
    return settings


def read(dataset: Any) -> Arrays:
    """Reads the arrays of a dataset.

    Raises:
        UserError: the dataset has no training samples, too few for `dataset.validation`, or validation samples already.
    """
    arrays = sources.read(dataset.name, **place(dataset))
    if not len(arrays.train_labels):
        raise UserError(f"dataset.path={dataset.path}: no train rows\nallowed: a dataset with train rows")
    if dataset.validation and arrays.validation_labels is not None:
        n = len(arrays.validation_labels)
        raise UserError(
            f"dataset.validation={dataset.validation:g}: the data have {n:,} validation rows\nallowed: 0, which uses them"
        )
    rows = min(len(arrays.train_labels), dataset.limit or len(arrays.train_labels))
    if dataset.validation and int(dataset.validation * rows) < 2:
        raise UserError(
            f"dataset.validation={dataset.validation:g}: fewer than two of {rows} train rows\n"
            "allowed: 0, or a fraction up to 0.5 that selects two rows or more"
        )
    return arrays


def place(dataset: Any) -> dict[str, Any]:
    """Returns the settings of a dataset that determine its rows and pixels, by the argument names of `sources.read`."""
    if dataset.name in DATASETS:
        return DATASETS[dataset.name].own(dataset)
    return {key: getattr(dataset, key) for key in PLACE if hasattr(dataset, key)}


def device_for(settings: Settings) -> str:
    """Returns the device of the training: `cpu` or `cuda:N`.

    Raises:
        UserError: the machine has no such device, or the device cannot compute what the settings request.
    """
    engine.let_waiting_threads_sleep(settings.device)
    device = device_of(settings.device, settings.engine.devices)
    chosen = engine.choose(settings, device)
    compatibility.check(settings, device)
    if chosen == "packed":
        from bnn_exp import models

        engine.choose(settings, device, models.kind(settings.model))
    return device


def device_of(name: str, devices: int = 1) -> str:
    """Returns `cpu` or `cuda:N` for the setting device=`name`. `auto` stands for the first GPU, or the CPU without a GPU.

    Raises:
        UserError: this machine has too few GPUs for the device, or for the number of `devices`.
    """
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = local_size(devices)
    if devices > 1 and (name.startswith("cuda:") or (here > count and (count or name == "cuda"))):
        raise UserError(
            f"engine.devices={devices}: this machine has {count or 'no'} CUDA device{'s' * (count > 1)}, device={name}\n"
            f"allowed: {f'up to {count} with device=cuda, ' * (count > 1)}any number with device=cpu"
        )
    if name == "auto":
        return "cuda:0" if count else "cpu"
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        there = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(count))])
        raise UserError(f"device={name}: this machine has {count or 'no'} CUDA device{'s' * (count > 1)}\nallowed: {there}")
    return f"cuda:{index}"


def packed_device(name: str) -> str:
    """Returns the device on which a task evaluates a packed network: the CPU for device=auto, else the device `name`.

    Raises:
        UserError: this machine has no such GPU.
    """
    return device_of("cpu" if name == "auto" else name)
