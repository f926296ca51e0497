"""Runs exported networks on microcontrollers in QEMU, and prints memory and instructions: `scripts/mcu.sh RUN [RUN ...]`.

Each RUN is the directory of a run, or a model.safetensors. The script exports C, builds it by arm-none-eabi-gcc for Cortex-M4
and M0+, and classifies 200 test pictures there. Classes and scores must be those of the packed network. The script prints the
lines of a Markdown table. docs/deploy.md says how each figure is counted.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_exp import load_packed
from bnn_exp.bits import bit_sums, pixel_sums
from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.exports.c.constants import integer_scores
from bnn_exp.deploy.exports.c.source import write_c
from bnn_exp.deploy.integers import IntegerLayer
from bnn_exp.errors import UserError
from bnn_exp.training import plan

HERE = Path(__file__).parent
TOOLS = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
STRICT = ("-Wall", "-Wextra", "-Werror")
OPTIMIZE = "-O2"
PICTURES = 200
NANOSECONDS = 64  # of an instruction, by -icount shift=6


@dataclass(frozen=True)
class Device:
    """A processor, and the machine of QEMU that runs its code."""

    name: str
    processor: str
    machine: tuple[str, ...]
    flash: str
    ram: str
    tick: float  # nanoseconds of a tick of the timer
    define: tuple[str, ...] = ()


# QEMU has no M0+. Its M0 executes the instructions of ARMv6-M, as an M0+ does, and faults at all others. The machine gets more
# RAM than a micro:bit has.
MICROBIT = ("microbit", "-global", "nrf51-soc.sram-size=65536")
DEVICES = (
    Device("Cortex-M4", "cortex-m4", ("mps2-an386",), "4M", "4M", 40),
    Device("Cortex-M0+", "cortex-m0plus", MICROBIT, "256K", "64K", 62.5, ("-DNRF51",)),
)


@dataclass(frozen=True)
class Measured:
    """The memory, instructions and answers of a network on a device. Sizes are in bytes, without those of device.c."""

    flash: int  # code and constants, with the functions of the C library
    variables: int
    stack: int  # the most of all pictures
    instructions: int  # of a picture, the mean
    classes: Tensor  # int32 [pictures]
    scores: Tensor  # int64 [pictures, classes]


def missing_tools() -> str:
    """Returns the names of the missing tools; "" if none is missing."""
    return ", ".join(tool for tool in TOOLS if which(tool) is None)


def measure(device: Device, network: Any, images: Tensor, folder: Path) -> Measured:
    """Builds the C code of a packed network for the device, in `folder`, and runs it over `images`, uint8 [n, …]."""
    scores = network(images[:1]).shape[1]
    source, header, *_ = write_c(network, tuple(images.shape[1:]), tuple(map(str, range(scores))))
    (folder / "network.c").write_text(source)
    (folder / "network.h").write_text(header)
    (folder / "pixels.raw").write_bytes(images.contiguous().numpy().tobytes())
    sizes = execute(device, folder, "device.c", "network.c")
    kind = np.dtype([("scores", "<i8", scores), ("best", "<i4"), ("ticks", "<u4"), ("stack", "<u4"), ("", "<u4")])
    results = np.fromfile(folder / "results.raw", kind)
    instructions = round(results["ticks"].astype(np.float64).mean() * device.tick / NANOSECONDS)
    classes, found = (torch.from_numpy(results[name].copy()) for name in ("best", "scores"))
    return Measured(int(sizes[".text"]), int(sizes[".bss"]), int(results["stack"].max()), instructions, classes, found)


def execute(device: Device, folder: Path, program: str, source: str, *options: str) -> dict[str, str]:
    """Builds `source` of the folder with a program of this folder, and runs the program in QEMU, in the folder.

    Returns:
        The sizes of the sections in bytes, by name. `.text` and `.bss` are those of the source.
    """
    compiler = ["arm-none-eabi-gcc", f"-mcpu={device.processor}", "-mthumb", OPTIMIZE, *STRICT, f"-I{folder}", *options]
    run(*compiler, "-std=c99", "-pedantic", "-c", folder / source, "-o", folder / "source.o")
    run(*compiler, "-std=gnu99", *device.define, "-c", HERE / program, "-o", folder / "device.o")
    memory = f"-Wl,--defsym=FLASH={device.flash},--defsym=RAM={device.ram}"
    link = ["-nostartfiles", "--specs=nano.specs", memory, "-T", HERE / "device.ld", folder / "device.o", folder / "source.o"]
    run(*compiler, *link, "-o", folder / "device.elf")

    quiet = ["-display", "none", "-monitor", "none", "-serial", "none"]
    host = ["-icount", "shift=6", "-semihosting-config", "enable=on,target=native"]
    run("qemu-system-arm", "-M", *device.machine, *quiet, *host, "-kernel", "device.elf", folder=folder)
    sizes = run("arm-none-eabi-size", "-A", folder / "device.elf")
    return dict(re.findall(r"^(\.\w+)\s+(\d+)", sizes, re.MULTILINE))


def run(*command: str | Path, folder: Path | None = None) -> str:
    """Returns the output of a command.

    Raises:
        SystemExit: the command fails.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def exact_scores(network: Any, images: Tensor) -> Tensor:
    """Returns the scores that the C code of a packed network has to give, int64 [n, classes]."""
    *layers, last = network.layers
    h = images.permute(0, 2, 3, 1).contiguous() if isinstance(network, DeployedCNN) else images.flatten(1)
    for layer in layers:
        h = layer(h)
    sums = (pixel_sums if last.pixels else bit_sums)(h.flatten(1), last.tiles, last.outputs, last.zero)
    scales, offsets = map(torch.from_numpy, integer_scores(last))
    return sums * scales + offsets


def products(network: Any) -> int:
    """Returns the number of multiply-adds of a picture."""
    shapes = network.shapes() if isinstance(network, DeployedCNN) else [(1, 1, 1)] * len(network.layers)
    count = 0
    for layer, (height, width, _) in zip(network.layers, shapes, strict=True):
        if isinstance(layer, IntegerLayer):
            count += height * width * layer.bits().numel()
        elif hasattr(layer, "inputs"):
            count += layer.inputs * layer.outputs
    return count


def main(models: list[str]) -> None:
    """Prints the table of the networks."""
    if missing_tools():
        raise SystemExit(f"not installed: {missing_tools()}")
    if not models:
        raise SystemExit("no run is named\nallowed: scripts/mcu.sh RUN [RUN ...]")
    print("| network | multiply-adds | processor | flash, bytes | variables, bytes | stack, bytes | instructions |")
    print("|---|---|---|---|---|---|---|")
    for model in models:
        network, about = load_packed(model)
        images = torch.from_numpy(plan.read(SimpleNamespace(**about["config"]["dataset"])).test_images[:PICTURES])
        for device in DEVICES:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(device, network, images, Path(folder))
            if not torch.equal(found.scores, exact_scores(network, images)):
                raise SystemExit(f"{model} on {device.name}: the scores are not those of the packed network")
            if not torch.equal(found.classes, network(images).argmax(1)):
                raise SystemExit(f"{model} on {device.name}: the classes are not those of the packed network")
            sizes = f"{found.flash:,} | {found.variables:,} | {found.stack:,} | {found.instructions:,}"
            print(f"| {about['config']['model']['name']} | {products(network):,} | {device.name} | {sizes} |", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        raise SystemExit(str(error)) from None
