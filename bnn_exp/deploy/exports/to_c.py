"""Exports a packed MLP or CNN as C for a microcontroller. The code is compiled and checked on images before it is written."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bnn_exp.deploy.check import check_equal, check_integers, predictions
from bnn_exp.deploy.exports.c.compiler import build, output
from bnn_exp.deploy.exports.c.prepare import checked, with_facts
from bnn_exp.deploy.exports.c.source import write_c
from bnn_exp.deploy.exports.given import in_folder, ready
from bnn_exp.deploy.exports.preprocessing import Preprocessing
from bnn_exp.records import probe_logits
from bnn_exp.records.files import replacing


def export_c(
    network: nn.Module,
    directory: str | Path = ".",
    images: Tensor | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> dict:
    """Writes `network.c` and `network.h`: C99 in integers only, without dependencies or allocation.

    With `preprocessing` it also writes `network_prepare.c`, which makes the pixels of a camera's frame, and `network_test.c`,
    which checks a build.

    Args:
        network: a DeployedMLP or a DeployedCNN, or a network that `pack_network` packs as one.
        directory: created if it is missing.
        images: uint8 [n, channels, height, width], n ≥ 1. The program must predict the same classes for these images as
            the network. None: random pixels, see `export_onnx`.
        classes: the names of the classes. None: "0", "1", …
        preprocessing: how images become pixels, with test vectors. None: unknown.

    Returns:
        `files`; `flash_bytes`, the size of all constants, without the code; `ram_bytes`, the size of all variables, without the
        image, the scores and the stack (`NETWORK_STACK` in network.h bounds it); `prepare_ram_bytes`, the variables of
        network_prepare.c.

    Raises:
        UserError: the network is of another kind, there is no C compiler, or a prediction differs. Then nothing is written.
    """
    network, directory, images, classes = ready("c", network, directory, images, classes)
    if hasattr(type(network), "c"):
        (source, header), sizes = network.c(tuple(images.shape[1:]), classes), {}
    else:
        check_integers("c", network, "the C code has only integers")
        source, header, flash, ram = write_c(network, tuple(images.shape[1:]), classes)
        sizes = {"flash_bytes": flash, "ram_bytes": ram}
    facts = preprocessing or Preprocessing.of_images(images, classes)
    texts = {"network.c": source, "network.h": with_facts(header, facts)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, text in texts.items():
            (folder / name).write_text(text)
        compile_c(folder)
        for batch in (images, probe_logits.pixels(tuple(images.shape[1:]))):
            check_equal("the compiled C", classify(folder / "network", batch), predictions(network, batch))
        texts |= checked(folder, facts)
    for name, text in texts.items():
        with replacing(in_folder(directory / name)) as temporary:
            temporary.write_text(text)
    if "network_prepare.c" in texts:
        sizes["prepare_ram_bytes"] = facts.c_memory()
    return {"files": [directory / name for name in texts], **sizes}


def compile_c(folder: Path, *options: str) -> None:
    """Compiles network.c in `folder` to the program `network`, with $CC or cc.

    Raises:
        UserError: there is no such compiler, or it fails.
    """
    build(folder, *options, "-DNETWORK_MAIN", "network.c", "-o", "network")


def classify(program: Path, images: Tensor) -> Tensor:
    """Returns the classes, int64 [n], that the compiled program predicts for images, uint8 [n, …].

    Raises:
        UserError: the program fails.
    """
    raw = program.with_suffix(".raw")
    raw.write_bytes(images.contiguous().numpy().tobytes())
    return torch.tensor([int(line.split(" ", 1)[0]) for line in output(program, raw).split("\n")[:-1]], dtype=torch.int64)
