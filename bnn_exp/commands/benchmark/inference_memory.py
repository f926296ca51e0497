"""The memory of a process that loads a network and predicts with it. The process runs this module as a program.

    python -m bnn_exp.commands.benchmark.inference_memory packed|float MODEL BATCH

prints JSON with numbers of bytes: the resident bytes after the imports (`imported`), after loading (`loaded`) and after the
prediction (`used`), and the greatest number of resident bytes (`peak`).
"""

import json
import math
import subprocess
import sys
from pathlib import Path

from bnn_exp.commands.benchmark import process_memory


def measure(kind: str, model: Path, batch: int) -> dict[str, int] | None:
    """Returns the bytes that a new process needs for the network in `model`; None if the system does not report memory.

    Args:
        kind: `packed` or `float`.
        batch: the number of images to predict.
    """
    if not process_memory.known():
        return None
    command = [sys.executable, "-m", "bnn_exp.commands.benchmark.inference_memory", kind, str(model), str(batch)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _main(kind: str, model: str, batch: int) -> None:
    import torch

    from bnn_exp.deploy import load_packed
    from bnn_exp.records.model import load_model

    sizes = {"imported": process_memory.resident()}
    network, about = {"packed": load_packed, "float": load_model}[kind](model)
    sizes["loaded"] = process_memory.resident()
    pixels = torch.zeros(batch * math.prod(about["image_shape"]), dtype=torch.uint8)
    with torch.inference_mode():
        network(pixels.view(batch, *about["image_shape"]))
    print(json.dumps(sizes | {"used": process_memory.resident(), "peak": process_memory.peak()}))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
