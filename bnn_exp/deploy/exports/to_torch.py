"""Exports a packed network as a `torch.export` program: a file with packed weights that needs only torch."""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from bnn_exp.bits import operators, reference
from bnn_exp.deploy.check import FORMS, check_alike, check_equal, check_packed, predictions
from bnn_exp.deploy.exports.given import in_folder, ready
from bnn_exp.deploy.exports.preprocessing import FILE, Preprocessing
from bnn_exp.records.files import replacing


def export_torch(
    network: nn.Module,
    directory: str | Path = ".",
    images: Tensor | None = None,
    preprocessing: Preprocessing | None = None,
) -> dict:
    """Writes `network.pt2`: uint8 pixels [batch, channels, height, width] → logits, for any batch size.

    The program has only plain torch operators, so it runs without bnn_exp. It is slower than the network of `load_packed`,
    which uses kernels.

    Args:
        network: a packed network, or one that `pack_network` can pack.
        directory: created if it is missing.
        images: uint8 [n, channels, height, width], n ≥ 1. The program must predict the same classes for these images as
            the network. None: random pixels, see `export_onnx`.
        preprocessing: how images become pixels, for the file `preprocessing.json` in the program. None: unknown.

    Returns:
        `file`, and `bytes`, its size.

    Raises:
        UserError: the network is of another kind, or a prediction or logits differ. Then nothing is written.
    """
    network, directory, images, classes = ready("torch", network, directory, images)
    check_packed("torch", network, *FORMS)
    facts = preprocessing or Preprocessing.of_images(images, classes)
    return write_torch(network, network, directory, images, facts)


def write_torch(
    network: nn.Module, form: nn.Module, directory: Path, images: Tensor, facts: Preprocessing | None = None
) -> dict:
    """Exports `form`, which computes what `network` computes. Checks the program against `network`, and writes the file."""
    file = directory / "network.pt2"
    example = images[:1].expand(2, *images.shape[1:]).contiguous()
    shapes = ({0: torch.export.Dim("batch", min=1)},)  # by position: a user's network may give its argument any name
    plain: dict = {getattr(torch.ops.bnn_exp, name).default: getattr(reference, name) for name in operators.SCHEMAS}
    written, extra = io.BytesIO(), {FILE: facts.json()} if facts else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns about calls within torch itself
        program = torch.export.export(form, (example,), dynamic_shapes=shapes)
        torch.export.save(
            program.run_decompositions(plain | {torch.ops.aten.std_mean.dim: _std_mean}), written, extra_files=extra
        )
        again = torch.export.load(io.BytesIO(written.getvalue())).module()
    check_equal("torch.export", predictions(again, images), predictions(network, images))
    check_alike("torch.export", again, network, tuple(images.shape[1:]))
    with replacing(in_folder(file)) as temporary:
        temporary.write_bytes(written.getvalue())
    return {"file": file, "bytes": file.stat().st_size}


def _std_mean(x: Tensor, dim: list[int], unbiased: bool = True, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Computes `std_mean`. It replaces the decomposition of torch 2.13, which calls itself with wrong arguments."""
    return torch.std(x, dim, correction=int(unbiased), keepdim=keepdim), x.mean(dim, keepdim=keepdim)
