"""Prepares frames on microcontrollers in QEMU, and prints memory and instructions: `python scripts/mcu/frames.py RUN ...`.

Each RUN is the directory of a run, or a model.safetensors. The frames come line by line. Their pixels must be those of
training. The script prints the lines of a Markdown table.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import DEVICES, NANOSECONDS, Device, execute, missing_tools

from bnn_exp import load_packed
from bnn_exp.deploy import Preprocessing
from bnn_exp.deploy.exports.c.prepare import with_facts
from bnn_exp.deploy.exports.c.source import write_c
from bnn_exp.errors import UserError

SIZES = ((320, 240), (160, 120))  # of the frames, in colours
MOST = "-DNETWORK_FRAME_MOST=320"


def prepare(
    device: Device, header: str, facts: Preprocessing, frames: list[np.ndarray], folder: Path
) -> tuple[dict, list[int]]:
    """Prepares frames, uint8 [height, width, channels], on the device.

    Returns:
        The sizes of the sections in bytes, and the number of instructions for each frame.

    Raises:
        SystemExit: a pixel differs from that of training.
    """
    (folder / "network.h").write_text(with_facts(header, facts))
    (folder / "network_prepare.c").write_text(facts.c_source() or "")
    with (folder / "frames.raw").open("wb") as file:
        for frame in frames:
            height, width, channels = frame.shape
            file.write(np.array([width, height, channels], "<i4").tobytes() + frame.tobytes())
    sizes = execute(device, folder, "frames.c", "network_prepare.c", MOST)
    count = int(np.prod(facts.shape))
    results = np.fromfile(folder / "results.raw", [("ticks", "<u4"), ("error", "<i4"), ("pixels", "u1", -(-count // 4) * 4)])
    for frame, result in zip(frames, results, strict=True):
        if result["error"] or (result["pixels"][:count] != facts.prepare(frame).ravel()).any():
            raise SystemExit(f"{device.name}: the pixels of a frame of {frame.shape} are not those of training")
    return sizes, [round(float(ticks) * device.tick / NANOSECONDS) for ticks in results["ticks"]]


def main(models: list[str]) -> None:
    """Prints the table of the networks."""
    if missing_tools():
        raise SystemExit(f"not installed: {missing_tools()}")
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (height, width, 3), np.uint8) for width, height in SIZES for _ in "12"]
    heads = (
        "pixels",
        "processor",
        "code, bytes",
        "variables, bytes",
        "frames",
        "instructions of the first frame",
        "of each next",
    )
    print(f"| {' | '.join(heads)} |")
    print("|" + "---|" * len(heads))
    for model in models:
        network, about = load_packed(model)
        facts = Preprocessing.of(about)
        header = write_c(network, facts.shape, facts.classes)[1]
        for device in DEVICES:
            with tempfile.TemporaryDirectory() as folder:
                sizes, counts = prepare(device, header, facts, frames, Path(folder))
            start = f"| {'×'.join(map(str, facts.shape))} | {device.name} | {int(sizes['.text']):,} | {int(sizes['.bss']):,} |"
            for (width, height), first, following in zip(SIZES, counts[::2], counts[1::2], strict=True):
                print(f"{start} {width}×{height} RGB | {first:,} | {following:,} |", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        raise SystemExit(str(error)) from None
