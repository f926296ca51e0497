"""The packed MLP as C for a microcontroller, compiled here and run over pictures before it counts as done."""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bnn_exp.deploy.c_source import write_c
from bnn_exp.deploy.check import check_equal, check_packed, predictions
from bnn_exp.deploy.given import in_folder, ready
from bnn_exp.errors import UserError
from bnn_exp.records import probe_logits
from bnn_exp.records.files import replacing


def export_c(
    network: nn.Module, directory: str | Path = ".", images: Tensor | None = None, classes: Sequence[str] | None = None
) -> dict:
    """Write `network.c` and `network.h`: C99 without dependencies or allocation, integers only.

    Args:
        network: a PackedMLP, or an MLP that `pack_network` packs.
        directory: made where it is missing.
        images: uint8 [n, channels, height, width], n ≥ 1; the program must predict for them as the network does. None: random
            pixels, for square pictures.
        classes: the names of the classes; None: "0", "1", …

    Returns:
        `files`, `flash_bytes` (all constants; the code comes to it) and `ram_bytes` (activations and scores; the picture and
        the stack frames of a few integers come to them).

    Raises:
        UserError: another kind of network, no C compiler to check by, or a prediction differs; nothing is written.
    """
    if type(network).__name__ == "BNCVLNet":
        raise UserError(
            "export.format=c: only networks of bits can be written in integers\nallowed: model=mlp; or format onnx, torch"
        )
    network, directory, images, classes = ready("c", network, directory, images, classes)
    if hasattr(type(network), "c"):
        (source, header), sizes = network.c(tuple(images.shape[1:]), classes), {}
    else:
        check_packed("c", network, "PackedMLP")
        source, header, flash, ram = write_c(network, tuple(images.shape[1:]), classes)
        sizes = {"flash_bytes": flash, "ram_bytes": ram}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "network.c").write_text(source)
        (folder / "network.h").write_text(header)
        compile_c(folder)
        for pictures in (images, probe_logits.pixels(tuple(images.shape[1:]))):
            check_equal("the compiled C", classify(folder / "network", pictures), predictions(network, pictures))
    files = [directory / "network.c", directory / "network.h"]
    for file, text in zip(files, (source, header), strict=True):
        with replacing(in_folder(file)) as temporary:
            temporary.write_text(text)
    return {"files": files, **sizes}


def compile_c(folder: Path, *options: str) -> None:
    """Make the program `network` of the network.c in `folder`, by $CC or cc."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise UserError(
            f"export.format=c: there is no C compiler {os.environ.get('CC', 'cc')!r} to check the export by\n"
            "allowed: one named by the environment variable CC, or cc"
        )
    command = [*compiler, "-std=c99", "-O2", *options, "-DNETWORK_MAIN", "network.c", "-o", "network"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"export.format=c: {shlex.join(command)} failed: {(done.stderr.splitlines() or [''])[0]}")


def classify(program: Path, images: Tensor) -> Tensor:
    """What the compiled program makes of images, uint8 [n, …]: their classes, int64 [n]."""
    raw = program.with_suffix(".raw")
    raw.write_bytes(images.contiguous().numpy().tobytes())
    done = subprocess.run([program, raw], capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise UserError(f"export.format=c: the compiled program ended with {done.returncode}: {done.stderr.strip()}")
    return torch.tensor([int(line.split(" ", 1)[0]) for line in done.stdout.split("\n")[:-1]], dtype=torch.int64)
