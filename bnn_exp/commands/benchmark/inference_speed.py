"""Measures the speed and size of a packed network beside the same network in torch, as plain data for `benchmark.json`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_exp.bits import bit_sums, laid_out, pack, pixel_sums, to_tiles
from bnn_exp.commands.benchmark import inference_memory, inference_onnx
from bnn_exp.commands.benchmark.float_ways import FloatWays
from bnn_exp.commands.benchmark.layer_times import has_layers, layer_times
from bnn_exp.commands.benchmark.lower_bound import rates
from bnn_exp.commands.benchmark.machine import machine, using_threads
from bnn_exp.commands.benchmark.timing import ROUNDS, time_calls
from bnn_exp.deploy.load import load_packed
from bnn_exp.nn.graphs import Graphs
from bnn_exp.records.model import load_model, model_file

Way = Callable[[Tensor], Callable[[], Any]]  # takes a batch of pixels and returns the call to time
BATCHES = (1, 16, 256, 4096)
BATCHES_CNN = (1, 16, 64)  # for a CNN, which takes a hundred times as long as an MLP for an image
LAYER_BATCH = 16  # images with which each layer of a CNN is timed
LAYERS = ((784, 1024, 1), (1024, 1024, 1), (4096, 4096, 1), (1024, 1024, 16), (784, 1024, 1024), (1024, 1024, 1024))
LAYERS_CUDA = ((784, 4096, 1), (1024, 1024, 1), (8192, 8192, 1), (8192, 8192, 16), (8192, 8192, 1024))
WEIGHTS = 16  # weight matrices with which a layer is measured in turn on a GPU; those of a large layer exceed the GPU's cache


def measure(
    path: str | Path,
    device: torch.device,
    batches: tuple[int, ...] | None = None,
    rounds: int = ROUNDS,
    threads: int = 1,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures the network of a run directory or a `model.safetensors`, packed and as floats.

    Args:
        batches: the numbers of images of the batches to time; None for `BATCHES`, or for a CNN on a CPU `BATCHES_CNN`.
        rounds: the number of times that each batch or layer is timed.
        threads: the number of threads of torch, of our kernels and of onnxruntime, on a CPU.
        say: a function that is called with a line before each measurement, since some measurements take minutes.

    Returns:
        - `machine`: see `machine`;
        - `network`: a row for each batch and way, with the seconds of a batch (`median`, and the quartiles `low` and `high`),
          `images_per_second`, and `speedup`, the speed of the packed network divided by the speed of this way. The ways are
          `packed`, torch fp32, on CUDA torch bf16, and for a CNN on a CPU torch bf16 and torch int8 (`float_ways`). On a CPU
          they are also `packed, predict`, and those of onnxruntime if it is installed (`inference_onnx.sessions`), all from
          numpy. On CUDA all ways replay CUDA graphs;
        - `layers`: such rows for single layers against `F.linear`. A layer of 784 inputs takes pixels, other layers take bits.
          On CUDA a row has also `floor`, the seconds that a copy takes for the bytes of inputs, weights and results. For a CNN
          on a CPU the rows are those of `layer_times`;
        - `memory`: on a CPU the bytes of a process with each network (see `inference_memory`), on CUDA the bytes at the peak of
          a batch;
        - `tensors`: the bytes of all tensors of the packed network, and of the parameters as float32;
        - `files`: the bytes of the model file on disk, and of its weights as float32.

    Raises:
        UserError: the model is missing or damaged, or can't be packed.
    """
    file = model_file(path)
    network, about = load_model(file)
    packed, _ = load_packed(file)
    packed, network = packed.to(device), network.to(device)
    with using_threads(threads):
        others: dict[str, Callable] = {}
        if device.type == "cpu":
            say("preparing onnxruntime and torch")
            others = inference_onnx.sessions(network, packed, about, threads)  # before the network becomes plain
            predict: Any = getattr(packed, "predict", None)
            others |= {"packed, predict": predict} if predict else {}
        floats = FloatWays(network)
        in_torch = floats.recorded() if device.type == "cuda" else floats.on_cpu(tuple(about["image_shape"]))
        on_pixels: dict[str, Any] = {"packed": packed, **in_torch}
        ways: dict[str, Way] = {name: on_tensors(way) for name, way in on_pixels.items()}
        ways |= {name: on_arrays(way) for name, way in others.items()}
        say("measuring memory")
        memory = _memory(file, ways, max(batches or BATCHES), about["image_shape"], device)
        found, layers = [], []
        own_layers = device.type == "cpu" and has_layers(packed)
        for batch in batches or (BATCHES_CNN if own_layers else BATCHES):
            say(f"measuring the network in {len(ways)} ways: batch {batch}, {rounds} rounds")
            found.append(_network(ways, batch, about["image_shape"], device, rounds))
        if own_layers:
            say(f"measuring the layers of the network: batch {LAYER_BATCH}, {rounds} rounds")
            layers.append(layer_times(packed, LAYER_BATCH, rounds))
        else:
            for inputs, outputs, batch in LAYERS_CUDA if device.type == "cuda" else LAYERS:
                say(f"measuring a layer {inputs} → {outputs}: batch {batch}, {rounds} rounds")
                layers.append(_layer(inputs, outputs, batch, device, rounds))
    return {
        "machine": machine(device, threads),
        "network": [row for rows in found for row in rows],
        "layers": [row for rows in layers for row in rows],
        "memory": memory,
        "tensors": {"packed": sum(t.nbytes for t in (*packed.buffers(), *packed.parameters())), "fp32": floats.bytes()},
        "files": {"model.safetensors": file.stat().st_size, "fp32": floats.bytes()},
    }


def on_tensors(way: Callable[[Tensor], Any]) -> Way:
    """Returns the way that calls a function of tensors."""
    return lambda pixels: partial(way, pixels)


def on_arrays(way: Callable[[np.ndarray], Any]) -> Way:
    """Returns the way that calls a function of numpy arrays."""
    return lambda pixels: partial(way, pixels.numpy())


def _network(ways: dict[str, Way], batch: int, shape: list[int], device: torch.device, rounds: int) -> list[dict]:
    pixels = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, device=device)
    times = _times({name: way(pixels) for name, way in ways.items()}, device, rounds)
    return _rows({"batch": batch}, times, batch)


@torch.inference_mode()
def _times(ways: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    if device.type == "cuda":
        for way in [*ways.values()] * 2:  # the second call records a CUDA graph, which takes long
            way()
    return time_calls(ways, device, rounds)


def _layer(inputs: int, outputs: int, batch: int, device: torch.device, rounds: int) -> list[dict]:
    """Measures a packed layer against `F.linear` of the same size. A layer of 784 inputs takes pixels, any other bits.

    On CUDA one graph computes `WEIGHTS` layers, so the time of a layer hardly contains the time of a launch.
    """
    weights = torch.randint(0, 2, (outputs, inputs))
    pixels = torch.randint(0, 256, (batch, inputs), dtype=torch.uint8)
    on_pixels, on_gpu = inputs == 784, device.type == "cuda"
    name, dtype = ("torch bf16", torch.bfloat16) if on_gpu else ("torch fp32", torch.float32)
    sums, bits = (pixel_sums, pixels) if on_pixels else (bit_sums, pack(pixels & 1))
    products: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
        "packed": (lambda x, w: sums(x, w, outputs, -1), bits.to(device), laid_out(to_tiles(pack(weights)).to(device))),
        name: (F.linear, pixels.to(device, dtype), (2 * weights - 1).to(device, dtype)),
    }
    prepared: Any = _of_many_weights if on_gpu else partial
    ways: dict[str, Callable[[], Any]] = {way: prepared(*product) for way, product in products.items()}
    times = _times(ways, device, rounds)
    kind = "pixels" if on_pixels else "bits"
    rows = _rows({"inputs": inputs, "outputs": outputs, "batch": batch, "kind": kind}, times, batch)
    per_second = rates(set(), device)["bytes"] if on_gpu else 0.0
    return [_of_one(row, per_second, *products[row["way"]]) for row in rows] if on_gpu else rows


def _of_many_weights(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> Callable[[], Any]:
    """Returns a function that replays a CUDA graph with `WEIGHTS` products, each with a copy of w of its own."""
    copies = [laid_out(w.clone()) if w.dtype == torch.uint8 else w.clone() for _ in range(WEIGHTS)]

    def products(x: Tensor) -> Tensor:
        for each in copies:
            result = product(x, each)
        return result

    graphs = Graphs(products, required=True)
    return lambda: graphs(x)


def _of_one(
    row: dict[str, Any], per_second: float, product: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor
) -> dict[str, Any]:
    """Turns `row`, measured for `WEIGHTS` products, into the row of one product, with its `floor` at a rate in bytes/s."""
    seconds = {key: row[key] / WEIGHTS for key in ("median", "low", "high")}
    floor = sum(t.nbytes for t in (x, w, product(x, w))) / per_second
    return row | seconds | {"images_per_second": row["images_per_second"] * WEIGHTS, "floor": floor}


def _rows(what: dict[str, Any], times: dict[str, dict[str, float]], batch: int) -> list[dict[str, Any]]:
    packed = times["packed"]["median"]
    return [
        what | {"way": way} | t | {"images_per_second": batch / t["median"], "speedup": t["median"] / packed}
        for way, t in times.items()
    ]


def _memory(file: Path, ways: dict[str, Way], batch: int, shape: list[int], device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return {kind: inference_memory.measure(kind, file, 1) for kind in ("packed", "float")}
    peaks = {}
    pixels = torch.zeros(batch, *shape, dtype=torch.uint8, device=device)
    # torch's peak does not show memory inside a CUDA graph. The first call with a shape has no graph, so this call is measured.
    for name, way in ways.items():
        with torch.inference_mode():
            way(pixels[:1])()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.inference_mode():
            way(pixels)()
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
    return peaks
