"""The ways to train a configuration that are measured, each by its name: a function of a batch's rows that makes one step."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bnn_exp.commands.benchmark.loops import adam_loop, in_floats, same_rule
from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.training.setup import network_to_train
from bnn_exp.training.trainer import Trainer

ENGINES = ("packed", "dense")  # of bnn_exp.training.engine
FP32, BF16, ADAM = "torch fp32", "torch bf16", "torch Adam"

Step = Callable[[Tensor], object]


def held(values: dict, threads: int) -> dict:
    """The plain values of a configuration as they are measured: as a run of them begins, at full strength (a schedule that
    ends in 0 would end in nothing to do), with that many threads."""
    values = copy.deepcopy(values)
    for group in ("optimizer", "real_optimizer"):
        if "schedule" in values[group]:
            values[group]["schedule"] = "constant"
    values["trainer"]["final_batch_size"], values["engine"]["threads"] = None, threads
    return values


def data_for(name: str, data: Dataset) -> Dataset:
    """The data as that way keeps them."""
    return data if name in ENGINES else in_floats(data)


def first_step(name: str, settings: Settings, data: Dataset) -> Step:
    """A new network and all else that way needs: what makes its steps. `data` are those of `data_for`."""
    if name in ENGINES:
        return trainer(name, settings, data).train_on
    if name == ADAM:
        return adam_loop(settings, data).step
    return same_rule(settings, data, bf16=name == BF16).step


def trainer(engine: str, settings: Settings, data: Dataset) -> Trainer:
    """The configuration's own training, by that engine."""
    gradient_bits = settings.engine.gradient_bits if engine == "packed" else None
    settings = replace(settings, engine=replace(settings.engine, name=engine, gradient_bits=gradient_bits))
    return Trainer(settings, network_to_train(settings, data).to(data.train.labels.device), data)


def plain(device: torch.device) -> tuple[str, ...]:
    """The loops of plain torch by the same rule that are worth a comparison on that device."""
    return (FP32, BF16) if device.type == "cuda" else (FP32,)
