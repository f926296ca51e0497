"""The ways to train a configuration that a benchmark compares. Each way is a function that makes one step on a batch."""

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnn_exp.commands.benchmark.float_twin import has_twin, twin_loop
from bnn_exp.commands.benchmark.torch_loops import adam_loop, in_floats, same_rule
from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.training.setup import network_to_train
from bnn_exp.training.trainer import Trainer

ENGINES = ("packed", "dense")  # the ways that train with our own engines, see bnn_exp.training.engine
FP32, BF16, RECORDED, ADAM = "torch fp32", "torch bf16", "torch bf16 recorded", "torch Adam"
TWINS = {  # the float twin of a CNN: under bf16 autocast, compiled
    "float twin fp32": (False, False),
    "float twin bf16": (True, False),
    "float twin fp32 compiled": (False, True),
    "float twin bf16 compiled": (True, True),
}

Step = Callable[[Tensor], object]  # its argument: indices of train rows, int64, on the device


def held(values: dict, threads: int) -> dict:
    """Returns a configuration without schedules: strengths and batch size keep the values with which a run begins.

    With a schedule that ends in 0 the last steps would do no work.

    Args:
        values: the plain values of a configuration; they are not changed.
        threads: the number of threads to train with.
    """
    values = copy.deepcopy(values)
    for group in ("optimizer", "real_optimizer"):
        if "schedule" in values[group]:
            values[group]["schedule"] = "constant"
    values["trainer"]["final_batch_size"], values["engine"]["threads"] = None, threads
    return values


def data_for(name: str, data: Dataset) -> Dataset:
    """Returns the dataset in the form that the way `name` keeps in memory: uint8 for an engine, else float32."""
    return data if name in ENGINES else in_floats(data)


def first_step(name: str, settings: Settings, data: Dataset) -> Step:
    """Builds a new network and optimizers for the way `name`, and returns the function that makes a step.

    Args:
        data: the result of `data_for`.
    """
    if name in ENGINES:
        return trainer(name, settings, data).train_on
    if name in TWINS:
        return twin_loop(settings, data, *TWINS[name]).step
    if name == ADAM:
        return adam_loop(settings, data).step
    loop = same_rule(settings, data, bf16=name in (BF16, RECORDED))
    if name == RECORDED:
        loop.record()
    return loop.step


def trainer(engine: str, settings: Settings, data: Dataset) -> Trainer:
    """Returns a new trainer for the settings, whose engine is `engine`."""
    gradient_bits = settings.engine.gradient_bits if engine == "packed" else None
    chosen: dict[str, Any] = {"name": engine, "gradient_bits": gradient_bits}
    settings = replace(settings, engine=replace(settings.engine, **chosen))
    return Trainer(settings, network_to_train(settings, data).to(data.train.labels.device), data)


def plain(device: torch.device) -> tuple[str, ...]:
    """Returns the names of the ways that train in plain torch by the rule of the settings.

    On a GPU also in bf16, and in bf16 with the whole step recorded as one CUDA graph.
    """
    return (FP32, BF16, RECORDED) if device.type == "cuda" else (FP32,)


def twins(settings: Settings, device: torch.device) -> tuple[str, ...]:
    """Returns the names of the ways that train the float twin of a CNN on a CPU. Other networks and GPUs have none.

    Without a C++ compiler torch.compile cannot compile for a CPU, and the compiled twins are left out.
    """
    if device.type != "cpu" or not has_twin(settings):
        return ()
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return tuple(name for name, (_, compiled) in TWINS.items() if compiler or not compiled)
