"""Runs exported networks on microcontrollers in QEMU, and prints what they take there.

    scripts/mcu.sh RUN [RUN ...]

Each RUN is a directory of a run, or a model.safetensors. The script exports C, builds it by arm-none-eabi-gcc for Cortex-M4 and
M0+, and classifies 200 test pictures there. The classes must be those of the packed network, and the scores those of the same
C code on this machine. It prints a row of a Markdown table for each network and processor.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import numpy as np
import torch
from torch import Tensor, nn

from bnn_exp.deploy.c_source import write_c

HERE = Path(__file__).parent
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
NANOSECONDS = 64  # of an instruction: -icount shift=6
TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm")


@dataclass(frozen=True)
class Device:
    """A processor, and the machine of QEMU that runs its code."""

    processor: str
    machine: tuple[str, ...]
    flash: str
    ram: str
    tick: float  # nanoseconds of a tick of the timer
    options: tuple[str, ...] = ()


# QEMU has no M0+. Its M0 has the same instructions (ARMv6-M), and refuses all others.
DEVICES = (
    Device("cortex-m4", ("mps2-an386",), "4M", "4M", 40),
    Device("cortex-m0plus", ("microbit", "-global", "nrf51-soc.sram-size=65536"), "256K", "64K", 62.5, ("-DNRF51",)),
)


@dataclass
class Measured:
    """What a network takes on a device. Sizes in bytes, without the harness."""

    flash: int
    variables: int
    stack: int
    instructions: int  # for a picture, the mean
    classes: np.ndarray  # int32 [pictures]
    scores: np.ndarray  # int64 [pictures, classes]


def missing_tools() -> str:
    """Returns the names of the missing tools; "" if there are all."""
    return ", ".join(tool for tool in TOOLS if which(tool) is None)


def measure(device: Device, folder: Path, images: Tensor, optimize: str = "-O2") -> Measured:
    """Builds network.c in `folder` for the device, and runs it over `images`, uint8 [n, …]."""
    for source in ("network", "device"):
        path = [] if source == "network" else [f"-I{folder}"]
        file = folder / "network.c" if source == "network" else HERE / "device.c"
        strict = STRICT if source == "network" else ["-std=gnu99", "-Wall", "-Wextra", "-Werror"]
        options = [f"-mcpu={device.processor}", "-mthumb", optimize, "-ffunction-sections", *device.options]
        run("arm-none-eabi-gcc", *options, *strict, *path, "-c", file, "-o", folder / f"{source}.o")
    symbols = [f"-Wl,--defsym=FLASH={device.flash},--defsym=RAM={device.ram}"]
    script = ["-nostartfiles", "--specs=nano.specs", "-Wl,--gc-sections", *symbols, "-T", HERE / "device.ld"]
    objects = [folder / "device.o", folder / "network.o"]
    run("arm-none-eabi-gcc", f"-mcpu={device.processor}", "-mthumb", *script, *objects, "-o", folder / "device.elf")
    sizes = run("arm-none-eabi-size", "-A", folder / "device.elf")
    size = {words[0]: int(words[1]) for line in sizes.splitlines() if (words := line.split()) and words[0].startswith(".")}

    (folder / "pixels.raw").write_bytes(images.contiguous().numpy().tobytes())
    quiet = ["-display", "none", "-monitor", "none", "-serial", "none"]
    host = ["-icount", "shift=6", "-semihosting-config", "enable=on,target=native"]
    run("qemu-system-arm", "-M", *device.machine, *quiet, *host, "-kernel", "device.elf", folder=folder)
    classes = int(next(line.split()[2] for line in (folder / "network.h").read_text().splitlines() if "_CLASSES " in line))
    kind = np.dtype([("scores", "<i8", classes), ("best", "<i4"), ("ticks", "<u4"), ("stack", "<u4"), ("", "<u4")])
    results = np.fromfile(folder / "results.raw", kind)
    assert len(results) == len(images), f"{len(results)} results for {len(images)} pictures"
    instructions = results["ticks"].astype(np.float64).mean() * device.tick / NANOSECONDS
    return Measured(
        size[".text"], size[".bss"], int(results["stack"].max()), round(instructions), results["best"], results["scores"]
    )


def run(*command: str | Path, folder: Path | None = None) -> str:
    """Returns the output of a command. Ends the script if the command fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def write(network: nn.Module, shape: tuple[int, ...], classes: tuple[str, ...], folder: Path) -> None:
    """Writes network.c and network.h."""
    source, header, *_ = write_c(network, shape, classes)
    (folder / "network.c").write_text(source)
    (folder / "network.h").write_text(header)
