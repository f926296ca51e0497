"""Chooses the precision of products, float32 or bfloat16, for `engine.precision=auto`.

On a GPU `auto` is bf16. On a CPU `auto` is bf16 where this processor multiplies bf16 clearly faster than float32: a processor
with AMX or AVX512-BF16. The speeds are measured once, and kept for later runs (`bnn_exp.training.measured`).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bnn_exp.config.settings import Settings
from bnn_exp.training import measured

if TYPE_CHECKING:
    from torch import Tensor

CLEARLY = 1.5  # how many times faster bf16 products must be
LEAST_WORK = 30_000  # batch size · hidden size of an MLP from which on its products take a large part of a step (a Zen 5)
_SIDE, _ROUNDS, _PATIENCE = 512, 7, 0.2  # of the measurement: rows and columns, rounds, and seconds after which it ends


def settled(settings: Settings, device: str, engine: str) -> Settings:
    """Returns the settings with `engine.precision` fp32 or bf16 in place of `auto`.

    Args:
        device: the type of the device, `cpu` or `cuda`.
        engine: `dense` or `packed`.
    """
    if settings.engine.precision != "auto":
        return settings
    precision: Any = "bf16" if _takes_bf16(settings, device, engine) else "fp32"
    return replace(settings, engine=replace(settings.engine, precision=precision))


def _takes_bf16(settings: Settings, device: str, engine: str) -> bool:
    if device != "cpu":
        return True
    work = getattr(settings.model, "hidden_size", LEAST_WORK) * settings.trainer.batch_size
    return engine == "dense" and work >= LEAST_WORK and bf16_is_faster()


def as_begun(settings: Settings, device: str, begun: Mapping[str, Any]) -> Settings:
    """Returns the settings of a run that resumes. `engine.precision=auto` becomes the precision with which the run began.

    Another kind of device chooses anew.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        begun: the checkpoint. Those of earlier versions name no precision: on a CPU it was fp32.
    """
    where = device.partition(":")[0]
    kept: Any = begun.get("precision", "fp32" if where == "cpu" else "auto")
    if settings.engine.precision != "auto" or begun.get("device", where) != where:
        return settings
    return replace(settings, engine=replace(settings.engine, precision=kept))


def bf16_is_faster() -> bool:
    """Returns True if this processor multiplies bf16 clearly faster than float32. The first call on a machine measures."""
    seconds = measured.products() or measure_products()
    return seconds["float32"] >= CLEARLY * seconds["bfloat16"]


def measure_products() -> dict[str, float]:
    """Measures torch's product of two square matrices, and keeps the seconds for later runs.

    Returns:
        The least seconds of a product, by the dtype of its operands: `float32` and `bfloat16`.
    """
    import torch

    a = torch.randn(_SIDE, _SIDE)
    operands = {"float32": a, "bfloat16": a.bfloat16()}
    seconds = dict.fromkeys(operands, float("inf"))
    for x in operands.values():
        x[:64, :64] @ x[:64, :64]  # a library prepares itself at its first product
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        for name, x in operands.items():
            seconds[name] = min(seconds[name], _seconds(torch.mm, x))
        if time.perf_counter() - began > _PATIENCE:
            break
    measured.keep_products(seconds)
    return seconds


def _seconds(product: "Callable[[Tensor, Tensor], Tensor]", x: "Tensor") -> float:
    began = time.perf_counter()
    product(x, x)
    return time.perf_counter() - began
