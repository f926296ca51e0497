"""Exports a packed MLP as C for a microcontroller. The code is compiled and checked on images before it is written."""

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
    """Writes `network.c` and `network.h`: C99 in integers only, without dependencies or allocation.

    Args:
        network: a DeployedMLP, or an MLP that `pack_network` can pack.
        directory: created if it is missing.
        images: uint8 [n, channels, height, width], n ≥ 1. The program must predict the same classes for these images as
            the network. None: random pixels, for square images.
        classes: the names of the classes. None: "0", "1", …

    Returns:
        `files`; `flash_bytes`, the size of all constants, without the code; `ram_bytes`, the size of activations and scores,
        without the image and the few integers of the stack frames.

    Raises:
        UserError: the network is of another kind, there is no C compiler, or a prediction differs. Then nothing is written.
    """
    network, directory, images, classes = ready("c", network, directory, images, classes)
    if type(network).__name__ == "DeployedBNCVL":
        raise UserError(
            "export.format=c: this network has real activations, and the C code has only integers\n"
            "allowed: a network trained with model.activation_bits=8 or 4; or export.format=onnx, torch"
        )
    if hasattr(type(network), "c"):
        (source, header), sizes = network.c(tuple(images.shape[1:]), classes), {}
    else:
        check_packed("c", network, "DeployedMLP", "DeployedCNN")
        source, header, flash, ram = write_c(network, tuple(images.shape[1:]), classes)
        sizes = {"flash_bytes": flash, "ram_bytes": ram}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "network.c").write_text(source)
        (folder / "network.h").write_text(header)
        compile_c(folder)
        for batch in (images, probe_logits.pixels(tuple(images.shape[1:]))):
            check_equal("the compiled C", classify(folder / "network", batch), predictions(network, batch))
    files = [directory / "network.c", directory / "network.h"]
    for file, text in zip(files, (source, header), strict=True):
        with replacing(in_folder(file)) as temporary:
            temporary.write_text(text)
    return {"files": files, **sizes}


def compile_c(folder: Path, *options: str) -> None:
    """Compiles network.c in `folder` to the program `network`, with $CC or cc.

    Raises:
        UserError: there is no such compiler, or it fails.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise UserError(
            f"export.format=c: there is no C compiler {os.environ.get('CC', 'cc')!r} to check the export with\n"
            "allowed: one named by the environment variable CC, or cc"
        )
    command = [*compiler, "-std=c99", "-O2", *options, "-DNETWORK_MAIN", "network.c", "-o", "network"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"export.format=c: {shlex.join(command)} failed: {(done.stderr.splitlines() or [''])[0]}")


def classify(program: Path, images: Tensor) -> Tensor:
    """Returns the classes, int64 [n], that the compiled program predicts for images, uint8 [n, …].

    Raises:
        UserError: the program fails.
    """
    raw = program.with_suffix(".raw")
    raw.write_bytes(images.contiguous().numpy().tobytes())
    done = subprocess.run([program, raw], capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise UserError(f"export.format=c: the compiled program ended with {done.returncode}: {done.stderr.strip()}")
    return torch.tensor([int(line.split(" ", 1)[0]) for line in done.stdout.split("\n")[:-1]], dtype=torch.int64)
