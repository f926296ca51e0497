"""Makes the trainer of a plan: data, network and optimizers, on the plan's device."""

import copy
import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bnn_exp import models
from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.data.old_keys import are_same
from bnn_exp.data.sources import Arrays
from bnn_exp.errors import UserError
from bnn_exp.nn.known_classes import home
from bnn_exp.nn.layers import packed_at_once
from bnn_exp.training import engine, finetune
from bnn_exp.training.memory.allocator import keep_freed_memory, return_freed_memory
from bnn_exp.training.plan import Plan, read
from bnn_exp.training.torchrun import local_size
from bnn_exp.training.trainer import Trainer

if TYPE_CHECKING:
    from bnn_exp.training.distributed.ranks import Ranks


def prepare(plan: Plan, directory: Path, ranks: "Ranks | None" = None) -> Trainer:
    """Returns the trainer of a new run, or of a run that resumes from the plan's checkpoint.

    Args:
        directory: the directory of the run, for messages.
        ranks: this process and the others that train the same network; None for a run of one process.

    Raises:
        UserError: the checkpoint does not fit on some rank, or the ranks have networks of different classes.
    """
    device = torch.device(plan.device) if ranks is None else ranks.device(plan.device)
    with nullcontext() if ranks is None else ranks.failing_together():
        trainer = _prepare(plan, directory, device, ranks)
    if ranks is not None:
        _check_class(ranks.everyones(home(type(trainer.network))))
    return trainer


def _check_class(homes: list[str]) -> None:
    """Raises UserError if ranks have different network classes: a program can replace a class in its own process only."""
    if other := next((there for there in homes if there != homes[0]), None):
        raise UserError(
            f"engine.devices={len(homes)}: the network is {homes[0]} in one process and {other} in another\n"
            "allowed: engine.devices=1, or torchrun with the program that replaces the class"
        )


def _prepare(plan: Plan, directory: Path, device: torch.device, ranks: "Ranks | None") -> Trainer:
    settings = plan.settings
    if not settings.engine.threads and ranks is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_size(ranks.size)))
    settle(settings, device)
    if ranks is None and plan.saved is not None:
        _keep_threads(settings, device, plan.saved.get("threads"))
    data = load(settings, plan.arrays or read(settings.dataset), device)
    copied = bool(settings.init_from) and plan.saved is None
    network = first_network(settings, data) if copied else network_to_train(settings, data)
    new = plan.saved is None and (settings.init_from or settings.freeze)
    beginning = asdict(finetune.begin(network, settings, data.classes)) if new else (plan.saved or {}).get("beginning")
    network = network.to(device)
    wanted = settings.engine
    if device.type == "cuda" and ranks is None and wanted.memory == "fast" and not wanted.compile:
        warm_up(settings, network, data)
    trainer = Trainer(settings, network, data, ranks)
    trainer.beginning = beginning
    if plan.saved is not None:
        _restore(trainer, plan.saved, directory)
    return trainer


def _keep_threads(settings: Settings, device: torch.device, threads: int | None) -> None:
    """Gives a resumed run its earlier number of threads, if its sums depend on this number, as torch's sums on a CPU do.

    Args:
        threads: the number of threads in the checkpoint; None in checkpoints of earlier versions.
    """
    dense = device.type == "cpu" and engine.choose(settings, "cpu", models.kind(settings.model)) == "dense"
    if dense and threads and not settings.engine.threads:
        torch.set_num_threads(threads)


def settle(settings: Settings, device: torch.device) -> None:
    """Prepares this process for a run on `device`: number of threads, memory allocator, deterministic algorithms."""
    if settings.engine.threads:
        torch.set_num_threads(settings.engine.threads)
    if device.type == "cpu":
        {"fast": keep_freed_memory, "lean": return_freed_memory}[settings.engine.memory]()
    else:
        torch.cuda.set_device(device)  # Triton's kernels and CUDA graphs use the current device
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Deterministic algorithms would also fill each new tensor with NaN, which takes a pass over its memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def warm_up(settings: Settings, network: nn.Module, data: Dataset) -> None:
    """Takes a step on a copy of the network, which compiles kernels and loads libraries.

    So the seconds of the first epoch measure the training alone. The call changes neither `network` nor torch's random
    numbers, and records no CUDA graph: the training records one at its second step.
    """
    used = [data.train.labels.device] if data.train.labels.is_cuda else []
    with torch.random.fork_rng(used):
        trainer = Trainer(settings, copy.deepcopy(network), data)
        trainer.network.train()
        trainer.train_on(trainer.batches.of_epoch(0)[0])


def load(settings: Settings, arrays: Arrays, device: torch.device) -> Dataset:
    """Returns the samples that the settings choose, as tensors on the device."""
    limits = settings.dataset.limit, settings.dataset.validation, settings.trainer.limit_eval
    return Dataset.from_arrays(arrays, device, *limits)


def first_network(settings: Settings, data: Dataset) -> nn.Module:
    """Returns a new network on the CPU, drawn from the seed."""
    torch.manual_seed(settings.seed)
    return models.build(settings.model, data.image_shape, len(data.classes), data.mean, data.std)


def network_to_train(settings: Settings, data: Dataset) -> nn.Module:
    """Returns a new network on the CPU. Layers pack their weights at once for the packed engine under `engine.memory=lean`."""
    device = data.train.labels.device.type
    if settings.engine.memory == "lean" and engine.choose(settings, device, models.kind(settings.model)) == "packed":
        with packed_at_once():
            network = first_network(settings, data)
        if engine.choose(settings, device, network) == "packed":
            return network
    return first_network(settings, data)


def _restore(trainer: Trainer, saved: dict, directory: Path) -> None:
    if not are_same(saved["data"], trainer.data.key, trainer.settings.dataset):
        raise UserError(
            f"resume={directory}: its dataset has changed since the run began (same name, other content)\n"
            "allowed: the data that the run began with; dataset.path in its config.yaml names their folder"
        )
    here = home(type(trainer.network))
    if (there := saved.get("class", here)) != here:  # checkpoints of earlier versions have no class
        raise UserError(
            f"resume={directory}: its network is of class {there}, but model={trainer.settings.model.name} is now {here}\n"
            f"allowed: a program in which model={trainer.settings.model.name} is {there}"
        )
    try:
        trainer.load(saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{directory}/checkpoints/last.pt does not fit the run's config.yaml: {error}") from error
