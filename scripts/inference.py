#!/usr/bin/env python
"""Measures packed networks on one thread of a CPU, beside torch and onnxruntime: the tables of docs/deployment.md.

    python scripts/inference.py RUN [RUN ...] --batches 1,64

Each RUN is the directory of a run, a model.safetensors, or zoo/NAME. All ways take turns in one process, from random pixels in
a numpy array to logits, `predict` to classes. A figure is the median of the rounds. It counts the time in which the thread
ran, so other processes hardly disturb it. `--wall` counts the time that passed. `--least` takes the least round in place of
the median.
"""

import argparse
import time
from functools import partial
from typing import Any

import torch

from bnn_exp import load_model, load_packed
from bnn_exp.commands.benchmark import inference_onnx, timing
from bnn_exp.commands.benchmark.float_ways import FloatWays

SHORT = 0.002  # seconds: a round repeats a call for at least this time


def ways(run: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Returns the ways to compute the network of a run, functions of arrays of pixels by name, and the shape of an image."""
    network, about = load_model(run)
    packed, shape = load_packed(run)[0], tuple(about["image_shape"])
    others = inference_onnx.sessions(network, packed, about, 1)  # before FloatWays makes weights real
    floats = {name: _of_arrays(way) for name, way in FloatWays(network).on_cpu(shape).items()}
    return {"predict": packed.predict} | floats | others, shape


def _of_arrays(way: Any) -> Any:
    return lambda pixels: way(torch.from_numpy(pixels))


def table(run: str, batches: list[int], rounds: int) -> str:
    """Returns a Markdown table with a row for each batch: the milliseconds of each way, and its time over that of `predict`."""
    known, shape = ways(run)
    lines = ["| " + " | ".join([run, *known]) + " |", "|" + "---|" * (len(known) + 1)]
    for batch in batches:
        pixels = torch.randint(256, (batch, *shape), dtype=torch.uint8).numpy()
        calls = {name: partial(way, pixels) for name, way in known.items()}
        times = {name: found["median"] for name, found in timing.time_calls(calls, torch.device("cpu"), rounds).items()}
        cells = [f"{1e3 * seconds:.3g} ms, {seconds / times['predict']:.1f}×" for seconds in times.values()]
        lines.append("| " + " | ".join([f"batch {batch}", *cells]) + " |")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    """Prints the table of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--batches", default="1,64", help="numbers of images, with commas between")
    parser.add_argument("--rounds", type=int, default=25, help="rounds in which all ways take turns")
    parser.add_argument("--least", action="store_true", help="the least of the rounds in place of the median")
    parser.add_argument("--wall", action="store_true", help="the time that passed, other processes included")
    given = parser.parse_args()
    torch.set_num_threads(1)
    timing.WINDOW = SHORT
    if given.least:
        timing.median = min
    if not given.wall:
        time.perf_counter = time.thread_time
    for run in given.runs:
        print(table(run, [int(batch) for batch in given.batches.split(",")], given.rounds), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
