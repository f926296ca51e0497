"""The ways to train a configuration that a benchmark compares. Each way is a function that makes one step on a batch."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnn_exp.commands.benchmark import peers
from bnn_exp.commands.benchmark.float_twin import has_twin, twin_loop
from bnn_exp.commands.benchmark.torch_loops import Loop, adam_loop, in_floats, same_rule
from bnn_exp.config.installed import has_cpp_compiler
from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset
from bnn_exp.models import kind
from bnn_exp.training.setup import network_to_train
from bnn_exp.training.trainer import Trainer

ENGINES = ("packed", "dense")  # the ways that train with our own engines, see bnn_exp.training.engine
FP32, BF16, RECORDED, COMPILED = "torch fp32", "torch bf16", "torch bf16 recorded", "torch fp32 compiled"
ADAM = "torch Adam"
TWINS = {  # the ways of the float twin of a CNN, each with: True under bf16 autocast, True if compiled
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


# The ways of other software, which may not run on this machine.
OPTIONAL = {COMPILED, *(name for name, (_, compiled) in TWINS.items() if compiled), *peers.LIBRARIES}


def first_step(name: str, settings: Settings, data: Dataset) -> Step:
    """Builds a new network and optimizers for the way `name`, and returns the function that makes a step.

    Args:
        data: the result of `data_for`.
    """
    if name in ENGINES:
        return trainer(name, settings, data).train_on
    return LOOPS[name](settings, data).step


def _recorded(settings: Settings, data: Dataset) -> Loop:
    loop = same_rule(settings, data, bf16=True)
    loop.record()
    return loop


def _compiled(settings: Settings, data: Dataset) -> Loop:
    loop = same_rule(settings, data)
    loop.network.compile()
    return loop


def _twin(bf16: bool, compiled: bool) -> Callable[[Settings, Dataset], Loop]:
    return lambda settings, data: twin_loop(settings, data, bf16, compiled)


# The ways without an engine of ours: the name of the way, and a function that builds its loop.
LOOPS: dict[str, Callable[[Settings, Dataset], Loop]] = {
    FP32: same_rule,
    BF16: partial(same_rule, bf16=True),
    RECORDED: _recorded,
    COMPILED: _compiled,
    ADAM: adam_loop,
    **{name: _twin(*how) for name, how in TWINS.items()},
    **{library: partial(peers.loop, library) for library in peers.LIBRARIES},
}


def trainer(engine: str, settings: Settings, data: Dataset) -> Trainer:
    """Returns a new trainer for the settings, whose engine is `engine`."""
    gradient_bits = settings.engine.gradient_bits if engine == "packed" else None
    chosen: dict[str, Any] = {"name": engine, "gradient_bits": gradient_bits}
    settings = replace(settings, engine=replace(settings.engine, **chosen))
    return Trainer(settings, network_to_train(settings, data).to(data.train.labels.device), data)


def plain(device: torch.device) -> tuple[str, ...]:
    """Returns the names of the ways that train in plain torch by the rule of the settings: in fp32, and under bf16 autocast.

    On a GPU also with the whole step in bf16 recorded as one CUDA graph.
    """
    return (FP32, BF16, RECORDED) if device.type == "cuda" else (FP32, BF16)


def compiled(settings: Settings, device: torch.device) -> tuple[str, ...]:
    """Returns the way that compiles the network with torch.compile, for an MLP on a CPU and if there is a C++ compiler."""
    return (COMPILED,) if device.type == "cpu" and settings.model.name == "mlp" and has_cpp_compiler() else ()


def usual(settings: Settings) -> tuple[str, ...]:
    """Returns the ways of latent weights and Adam: in plain torch, and by the layers of other installed libraries."""
    return (ADAM, *filter(peers.is_installed, peers.named(settings)))


def twins(settings: Settings, device: torch.device) -> tuple[str, ...]:
    """Returns the names of the ways that train the float twin of a CNN on a CPU. Other networks and GPUs have none.

    Without a C++ compiler torch.compile cannot compile for a CPU, and the compiled twins are left out.
    """
    if device.type != "cpu" or not has_twin(kind(settings.model)):
        return ()
    return tuple(name for name, (_, compiled) in TWINS.items() if has_cpp_compiler() or not compiled)
