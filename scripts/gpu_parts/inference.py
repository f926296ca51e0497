"""The part `inference`: a packed network and single layers beside torch."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnn_exp.commands.benchmark import inference_speed
from bnn_exp.records.model import save_model
from bnn_exp.training.setup import first_network
from gpu_parts.cases import Case, Machine, Row


def of_inference(machine: Machine) -> Iterator[Row]:
    """Yields the microseconds of a batch by a packed network and by torch, then those of single layers."""
    case = Case("784-4096³-10", "model.hidden_size=4096 model.num_layers=4")
    settings, data = machine.held(case)
    tiny: dict[str, Any] = {}
    if machine.device == "cpu":
        inference_speed.LAYERS = ((64, 64, 1),)
        tiny = {"batches": (1, 4), "rounds": 3}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_model(file, first_network(settings, data), machine.composed(case), data.image_shape, data.classes)
        found = inference_speed.measure(file, machine.torch_device, say=print, **tiny)
    rows: dict[tuple[str, int], Row] = {}
    for one in found["network"] + found["layers"]:
        what = f"{one['inputs']} → {one['outputs']}" if "inputs" in one else case.name
        row = rows.setdefault((what, one["batch"]), {"batch, µs": what, "batch": one["batch"]})
        row[one["way"]] = 1e6 * one["median"]
    yield from rows.values()
