"""The part `machine`: the card, the versions, and the rates of products, of a copy and of launches."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import torch

from bnn_exp.commands.benchmark.timing import seconds_of
from bnn_exp.config.installed import has_triton
from gpu_parts.cases import Machine, Row

PRODUCTS = (8192, 8192, 8192), (16384, 1024, 1024)  # rows, inner size and columns of the products whose rates are measured
KINDS = "bfloat16", "float16", "int8", "float8_e4m3fn"  # the last one needs a GPU of compute capability 8.9
REPEATS = 20


def of_machine(machine: Machine) -> Iterator[Row]:
    """Yields the card and the versions, then the rates of a copy, of launches in a CUDA graph, and of products."""
    on_gpu = machine.device == "cuda"
    yield {"": "card", "value": torch.cuda.get_device_name() if on_gpu else "none: on the CPU"}
    if on_gpu and (command := shutil.which("nvidia-smi")):
        asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
        yield {"": "driver", "value": subprocess.run(asked, capture_output=True, text=True).stdout.strip()}
    for name in ("torch", "triton", "numpy"):
        yield {"": name, "value": __import__(name).__version__ if find_spec(name) else "none"}
    yield {"": "Triton's kernels", "value": "used" if has_triton() else "not used: Triton or a C compiler is missing"}
    yield {"": "CPU cores", "value": len(os.sched_getaffinity(0))}
    yield {"": "copy, TB/s", "value": rate_of_copy(machine.torch_device, 2**32 if on_gpu else 2**20) / 1e12}
    if on_gpu:
        yield {"": "kernel to kernel in a CUDA graph, µs", "value": 1e6 * seconds_of_launch()}
    for rows, inner, columns in PRODUCTS if on_gpu else ((64, 64, 64),):
        for kind in kinds() if on_gpu else ("float32",):
            rate = rate_of_product(kind, rows, inner, columns, machine.torch_device)
            yield {"": f"product {rows} × {inner} × {columns} in {kind}, 10¹² operations/s", "value": rate / 1e12}


def kinds() -> tuple[str, ...]:
    """Returns the dtypes that the GPU multiplies."""
    return KINDS if torch.cuda.get_device_capability() >= (8, 9) else KINDS[:-1]


def rate_of_copy(where: torch.device, count: int) -> float:
    """Returns the rate of a copy of `count` bytes: bytes read plus bytes written, per second."""
    source = torch.randint(256, (count,), device=where, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * count / seconds_of(lambda: target.copy_(source), REPEATS, where, warm=True)


def rate_of_product(kind: str, rows: int, inner: int, columns: int, where: torch.device) -> float:
    """Returns the operations per second of torch's product of values ±1 of the dtype `kind`."""
    a, b = (2 * torch.randint(0, 2, (n, inner), device=where) - 1 for n in (rows, columns))
    a, b, one = a.to(getattr(torch, kind)), b.to(getattr(torch, kind)), torch.ones((), device=where)
    if kind == "int8":
        product = partial(torch._int_mm, a, b.t())
    elif kind == "float8_e4m3fn":
        product = partial(torch._scaled_mm, a, b.t(), one, one, out_dtype=torch.bfloat16)
    else:
        product = partial(torch.mm, a, b.t())
    return 2 * rows * inner * columns / seconds_of(product, REPEATS, where, warm=True)


def seconds_of_launch(count: int = 1000) -> float:
    """Returns the seconds from the start of a short kernel to the start of the next one, in a CUDA graph."""
    x, graph = torch.zeros(1, device="cuda"), torch.cuda.CUDAGraph()
    x.add_(1)
    with torch.cuda.graph(graph):
        for _ in range(count):
            x.add_(1)
    return seconds_of(graph.replay, REPEATS, x.device, warm=True) / count
