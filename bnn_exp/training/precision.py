"""Chooses the precision of products, float32 or bfloat16, for `engine.precision=auto`.

On a GPU `auto` is bf16. On a CPU `auto` is bf16 where this processor multiplies bf16 clearly faster than float32: one with AMX
or AVX512-BF16. The speeds are measured once, and kept for later runs (`bnn_exp.training.measured`). Imports no torch, except to
measure.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bnn_exp.config.settings import Settings
from bnn_exp.training import measured

CLEARLY = 1.5  # the least ratio of the times of fp32 and bf16 with which bf16 is chosen
LEAST_WORK = 30_000  # batch size · hidden size; from this size on, products take a large part of a step (on a Zen 5)
_ROUNDS, _PATIENCE = 7, 0.2  # of a measurement: rounds, and seconds after which the last round ends
_Products = dict[str, Callable[[], object]]  # by the precision, fp32 and bf16


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
    if work < LEAST_WORK or settings.engine.gradient_bits:
        return False
    return bf16_is_faster("matrices") or (engine == "packed" and bf16_is_faster("bits"))


def as_begun(settings: Settings, device: str, begun: Mapping[str, Any]) -> Settings:
    """Returns the settings of a run that resumes. `engine.precision=auto` becomes the precision with which the run began.

    Another kind of device chooses anew.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        begun: the checkpoint. Checkpoints of earlier versions name no precision; those versions took fp32 on a CPU.
    """
    where = device.partition(":")[0]
    kept: Any = begun.get("precision", "fp32" if where == "cpu" else "auto")
    if settings.engine.precision != "auto" or begun.get("device", where) != where:
        return settings
    return replace(settings, engine=replace(settings.engine, precision=kept))


def bf16_is_faster(kind: str = "matrices") -> bool:
    """Returns True if this processor multiplies in bf16 clearly faster than in fp32. The first call on a machine measures.

    Args:
        kind: a key of `KINDS`.
    """
    seconds = measured.products(kind) or measure_products(kind)
    return seconds["fp32"] >= CLEARLY * seconds["bf16"]


def measure_products(kind: str) -> dict[str, float]:
    """Measures a product in both precisions, and keeps the seconds for later runs.

    Args:
        kind: a key of `KINDS`.

    Returns:
        The least seconds of a product, by the precision: `fp32` and `bf16`.
    """
    products = KINDS[kind]()
    for product in products.values():
        product()  # compiles a kernel, or prepares a library
    seconds, began = dict.fromkeys(products, float("inf")), time.perf_counter()
    for _ in range(_ROUNDS):
        for name, product in products.items():
            seconds[name] = min(seconds[name], _seconds(product))
        if time.perf_counter() - began > _PATIENCE:
            break
    measured.keep_products(kind, seconds)
    return seconds


def _seconds(product: Callable[[], object]) -> float:
    began = time.perf_counter()
    product()
    return time.perf_counter() - began


def _of_matrices() -> _Products:
    """Returns torch's products of matrices."""
    import torch

    a = torch.randn(512, 512)
    b = a.bfloat16()
    return {"fp32": lambda: a @ a, "bf16": lambda: b @ b}


def _of_bits() -> _Products:
    """Returns the packed engine's products of a gradient and bits."""
    import torch

    from bnn_exp.bits.cpu.ways import InBF16, InFloat32

    grad, bits, out = torch.randn(1024, 1024), torch.randint(256, (1024, 128), dtype=torch.uint8), torch.empty(1024, 1024)
    fp32, bf16 = (way.by_bits(bits, 1024, 1024, -1.0) for way in (InFloat32(), InBF16()))
    return {"fp32": lambda: fp32.rows(grad, 0, 1024, out), "bf16": lambda: bf16.rows(grad, 0, 1024, out)}


# The kinds of products that are measured. matrices: of real matrices, by torch; bits: of a gradient and packed bits, in the
# fastest way of the packed engine.
KINDS: dict[str, Callable[[], _Products]] = {"matrices": _of_matrices, "bits": _of_bits}
