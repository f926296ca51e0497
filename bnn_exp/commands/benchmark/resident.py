"""The memory of a process that loads a network and predicts with it: run as a program, in a process of its own.

    python -m bnn_exp.commands.benchmark.resident packed|float MODEL BATCH

prints JSON: `imported`, `loaded`, `used` (bytes of memory resident after each of these) and `peak`.
"""

import json
import math
import subprocess
import sys
from pathlib import Path


def measure(kind: str, model: Path, batch: int) -> dict[str, int] | None:
    """The bytes of a process with the network of `model`, packed or float; None where /proc is not there to tell."""
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-m", "bnn_exp.commands.benchmark.resident", kind, str(model), str(batch)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _bytes(what: str) -> int:
    with Path("/proc/self/status").open() as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(what))


def _main(kind: str, model: str, batch: int) -> None:
    import torch

    from bnn_exp.deploy import load_packed
    from bnn_exp.records.model import load_model

    sizes = {"imported": _bytes("VmRSS")}
    network, about = {"packed": load_packed, "float": load_model}[kind](model)
    sizes["loaded"] = _bytes("VmRSS")
    pixels = torch.zeros(batch * math.prod(about["image_shape"]), dtype=torch.uint8)
    with torch.inference_mode():
        network(pixels.view(batch, *about["image_shape"]))
    print(json.dumps(sizes | {"used": _bytes("VmRSS"), "peak": _bytes("VmHWM")}))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
